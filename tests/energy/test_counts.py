"""Counts against loops written out, against torch's own convolutions, and against each other."""

import gc
import pickle
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.energy.counts import OPERATIONS, Counts, count, counting
from spikedriven.errors import ConfigError, DataError, ShapeError
from spikedriven.nn.probe import spike_sources
from spikedriven.nn.synapse import ConvNorm

FLAT = sd.SDTConfig(1, 16, 3, in_channels=2, num_heads=2, num_steps=3, stem_pool="0000")
POOLED = sd.SDTConfig(2, 32, 5, num_heads=4, stem_pool="1111")
CONFIGS = {
    "flat": FLAT,
    "one step": replace(FLAT, num_steps=1),
    "pooled": POOLED,
    "dilated": replace(FLAT, dvs_dilation=True),
    "plif": replace(POOLED, neuron="plif", stem_pool="0011"),
}
SIDES = {"flat": (5, 5), "one step": (1, 4), "pooled": (32, 16), "dilated": (3, 4), "plif": (8, 4)}


@cache
def model_of(name):
    return lively(CONFIGS[name], size=4 * CONFIGS[name].stride)


def images(name, count=2, *, moving=False):
    config = CONFIGS[name]
    steps = (config.num_steps,) if moving else ()
    shape = (count, *steps, config.in_channels, *SIDES[name])
    return torch.randint(0, 256, shape).float() / 255


def figures(counts):
    return {name: layer.steps for name, layer in counts.layers.items()}


def driven_by_hand(s, kernel, outputs):
    """Count, one spike and one tap at a time, the outputs that spikes [B, C, H, W] reach."""
    _, _, height, width = s.shape
    reach, additions = kernel // 2, 0
    for _, _, y, x in s.nonzero().tolist():
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    additions += outputs
    return additions


def inputs_of_synapses(model, x):
    """Return what reaches each layer with weights, [T, B, C, H, W] or [T, B, C]."""
    seen, stops = {}, []
    for name, module in model.named_modules():
        if isinstance(module, ConvNorm) or name == "head":
            keep = lambda _m, inputs, name=name: seen.__setitem__(name, inputs[0])  # noqa: E731
            stops.append(module.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(x)
    for stop in stops:
        stop.remove()
    return seen


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("moving", [False, True])
def test_additions_are_those_of_three_nested_loops(name, moving):
    model, x = model_of(name), images(name, moving=moving)
    counts = count(model, x)
    for layer, s in inputs_of_synapses(model, x).items():
        if layer == "stem.image":
            continue
        conv = model.head if layer == "head" else model.get_submodule(layer).conv
        kernel, outputs = (1, 3) if layer == "head" else (conv.kernel_size[0], conv.out_channels)
        outputs = conv.out_features if layer == "head" else outputs
        s = s[..., None, None] if layer == "head" else s
        by_hand = [driven_by_hand(s_t, kernel, outputs) for s_t in s]
        assert counts[layer].steps["additions"] == by_hand
        assert counts[layer].steps["weights_read"] == by_hand
        assert counts[layer].steps["spikes"] == [int(s_t.sum()) for s_t in s]


@pytest.mark.parametrize("name", CONFIGS)
def test_additions_are_a_convolution_of_ones(name):
    model, x = model_of(name), images(name)
    counts = count(model, x)
    for layer, s in inputs_of_synapses(model, x).items():
        if layer in ("stem.image", "head"):
            continue
        conv = model.get_submodule(layer).conv
        ones = torch.ones_like(conv.weight, dtype=torch.float64)
        current = torch.nn.functional.conv2d(s.flatten(0, 1).double(), ones, padding=conv.padding)
        assert counts[layer]["additions"] == int(current.sum())
        # If every input fired: the synapses that exist, and with padding as the literature counts.
        current = torch.nn.functional.conv2d(
            torch.ones_like(s).flatten(0, 1).double(), ones, padding=conv.padding
        )
        assert counts[layer]["dense"] == int(current.sum())
        assert counts[layer]["nominal"] == current.numel() * conv.weight[0].numel()


@pytest.mark.parametrize(("moving", "frames"), [(False, 1), (True, 3)])
def test_an_image_is_multiplied_once_for_a_frame(moving, frames):
    model, x = model_of("flat"), images("flat", moving=moving)
    counts = count(model, x)["stem.image"]
    ones = torch.ones(1, 1, 5, 5)
    taps = int(torch.nn.functional.conv2d(ones, torch.ones(1, 1, 3, 3), padding=1).sum())
    assert (
        counts.steps["multiplications"] == [2 * taps * 2 * 2] * frames
    )  # images, channels in, out
    assert counts["nominal"] == frames * 2 * 9 * 25 * 2 * 2
    assert counts["pixels_read"] == frames * x[0].numel() // (frames if moving else 1) * 2


def test_the_bits_of_an_image_are_counted_where_they_are_known():
    model, x = model_of("flat"), images("flat")
    assert "bit_additions" not in count(model, x)["stem.image"].steps
    pixels = (x * 255).round().byte()
    planes = torch.stack([pixels >> bit & 1 for bit in range(8)]).flatten(0, 1)
    normalised = (x - torch.tensor([0.4, 0.1])[:, None, None]) / torch.tensor([0.3, 2.0])[
        :, None, None
    ]
    counts = count(model, normalised, mean=(0.4, 0.1), std=(0.3, 2.0))
    assert counts["stem.image"]["bit_additions"] == driven_by_hand(planes, 3, 2)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_fires_is_what_the_probe_records(name):
    model, x = model_of(name), images(name)
    counts = count(model, x)
    with sd.record_spikes(model) as spikes, torch.no_grad():
        model(x)
    for layer, s in spikes.items():
        if not layer.endswith("dilation"):
            assert counts[layer].steps["fired"] == s.flatten(1).sum(1).tolist()
            assert counts.rates[layer] == pytest.approx(float(s.double().mean()), abs=1e-12)
    agreeing = spikes["blocks.0.attention.key"] & spikes["blocks.0.attention.value"]
    if name != "dilated":
        assert counts["blocks.0.attention"]["agreements"] == int(agreeing.sum())


@pytest.mark.parametrize("name", CONFIGS)
def test_what_silence_costs_is_the_size_of_the_tensors(name):
    """Updates, stream and traffic are arithmetic; here they are read off the tensors."""
    model, x = model_of(name), images(name)
    outputs, stops = {}, []
    for layer, module in model.named_modules():
        keep = lambda _m, _i, out, layer=layer: outputs.__setitem__(layer, out)  # noqa: E731
        stops.append(module.register_forward_hook(keep))
    counts = count(model, x)
    for stop in stops:
        stop.remove()
    learned = CONFIGS[name].neuron == "plif"
    for layer, module in spike_sources(model).items():
        if type(module).__name__ in ("LIF", "PLIF"):
            s = outputs[layer if layer in outputs else f"{layer}.lif"]
            s = outputs.get(f"{layer}.lif", s)
            assert counts[layer]["updates"] == s.numel()
            assert counts[layer]["leak_multiplications"] == s.numel() * learned
    for b in range(CONFIGS[name].depth):
        for layer in (f"blocks.{b}.attention.project", f"blocks.{b}.mlp.contract"):
            assert counts[layer]["stream_additions"] == outputs[layer].numel()
    stream, _ = outputs["blocks.0"]
    T, B, C, H, W = stream.shape
    assert counts["stem.position"]["stream_additions"] == stream.numel()
    assert counts["head_lif"]["stream_additions"] == T * B * C * (H * W - 1)
    for layer, s in inputs_of_synapses(model, x).items():
        if layer != "stem.image":
            assert counts[layer]["spikes_read"] == s.numel()


def windows_by_hand(side, stride):
    return sum(
        0 <= tap < side
        for centre in range(0, side, stride)
        for tap in range(centre - 1, centre + 2)
    )


def test_pools_join_what_lies_in_their_windows():
    counts = count(model_of("pooled"), images("pooled"))
    # The first stage: 4 channels of 32 x 16 pixels; a window of n pixels joins n - 1 times.
    joins = windows_by_hand(32, 2) * windows_by_hand(16, 2) - 16 * 8
    assert counts["stem.image.pool"].steps["ors"] == [2 * 4 * joins] * 4
    joins = windows_by_hand(4, 2) * windows_by_hand(2, 2) - 2 * 1
    assert counts["stem.fourth.pool"].steps["comparisons"] == [2 * 32 * joins] * 4
    assert "ors" not in counts["stem.fourth.pool"].steps


def test_attention_masks_and_joins_once_per_token():
    sites, gates = 2 * 16 * 25, 2 * 16
    plain = count(model_of("flat"), images("flat"))["blocks.0.attention"]
    assert plain.steps["ands"] == [2 * sites] * 3
    assert plain.steps["ors"] == [sites - gates] * 3
    # Dilated: 3 x 4 pixels, two heads of 8 channels, 12 tokens.
    spread = 16 * (windows_by_hand(3, 1) * windows_by_hand(4, 1) - 12)
    spread += 2 * (windows_by_hand(12, 1) * windows_by_hand(8, 1) - 12 * 8)
    dilated = count(model_of("dilated"), images("dilated"))["blocks.0.attention"]
    assert dilated.steps["ors"] == [2 * (16 * 12 - 16) + 2 * 2 * spread] * 3


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("moving", [False, True])
def test_a_batch_counts_what_its_images_count(name, moving):
    size = 32 if name == "flat" else 3
    model, x = deepcopy(model_of(name)).double(), images(name, size, moving=moving).double()
    together, alone = count(model, x), Counts()
    for b in range(size):
        alone.add(count(model, x[b : b + 1]))
    assert figures(together) == figures(alone)
    assert together.images == alone.images == size


def test_partial_batches_and_other_processes_add_up():
    model = deepcopy(model_of("flat")).double()
    x = images("flat", 7).double()
    whole = count(model, x)
    with counting(model) as counts, torch.no_grad():
        for part in x.split(3):
            model(part)
    assert figures(counts) == figures(whole)
    ranks = [pickle.loads(pickle.dumps(count(model, x[rank::3]))) for rank in range(3)]
    total = Counts()
    for rank in ranks:
        total.add(rank)
    assert figures(total) == figures(whole)
    assert total.rates == whole.rates


def test_sequences_of_different_length_add_up_step_by_step():
    model = deepcopy(model_of("flat")).double()
    x = images("flat", moving=True).double()
    with counting(model) as counts, torch.no_grad():
        model(x)
        model(x[:, :1])
    first, all_ = count(model, x[:, :1]), count(model, x)
    layer = "blocks.0.mlp.expand"
    expected = list(all_[layer].steps["additions"])
    expected[0] += first[layer].steps["additions"][0]
    assert counts[layer].steps["additions"] == expected
    assert counts.time_steps == 2 * 3 + 2 * 1


def test_counting_changes_nothing_and_leaves_nothing():
    model, x = model_of("flat"), images("flat")
    before = model(x)
    with counting(model) as counts:
        assert torch.equal(model(x), before)
    model(x)
    assert counts.images == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_pass_that_fails_leaves_nothing():
    model, x = model_of("flat"), images("flat")

    def fail(*_):
        raise RuntimeError("on purpose")

    with counting(model) as counts, torch.no_grad():
        for layer in (model.blocks[0].mlp, model.head):
            stop = layer.register_forward_pre_hook(fail)
            with pytest.raises(RuntimeError, match="on purpose"):
                model(x)
            stop.remove()
        assert counts.images == 0
        assert figures(counts) == {}
        model(x)
    assert figures(counts) == figures(count(model, x))


def test_inference_mode_first_changes_nothing_later():
    model, x = model_of("flat"), images("flat", moving=True)
    with torch.inference_mode():
        first = figures(count(model, x))
    with counting(model) as counts:
        model(x).sum().backward()
    assert figures(counts) == first


def test_agreements_that_half_precision_rounds_are_refused():
    """A sum of 301 ones is 300 in bfloat16, which counts to 256."""
    config = replace(FLAT, num_steps=1)
    model = sd.SpikeDrivenTransformer(config).eval()

    def fires(_module, _inputs, s):
        return torch.ones_like(s)

    for name in ("key", "value"):
        getattr(model.blocks[0].attention, name).lif.register_forward_hook(fires)
    x = torch.zeros(1, 2, 7, 43)
    assert count(model, x)["blocks.0.attention"]["agreements"] == 301 * 16
    narrow = deepcopy(model).bfloat16()
    with pytest.raises(ShapeError, match="fewer than 256 to be counted exactly: count in float32"):
        count(narrow, x.bfloat16())
    fewer = count(narrow, x[..., :36].bfloat16())["blocks.0.attention"]["agreements"]
    assert fewer == 252 * 16


def test_nothing_is_kept_from_image_to_image():
    model, x = model_of("flat"), images("flat")

    def living():
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with counting(model), torch.no_grad():
        model(x)
        once = living()
        for _ in range(3):
            model(x)
        assert living() == once


def test_every_kind_of_count_is_explained():
    kinds = set()
    for name, config in CONFIGS.items():
        channels = config.in_channels
        counts = count(model_of(name), images(name), mean=(0,) * channels, std=(1,) * channels)
        kinds |= {kind for layer in counts.layers.values() for kind in layer.steps}
    assert kinds == set(OPERATIONS)


def test_what_cannot_be_counted_is_refused_in_a_sentence():
    model, x = model_of("flat"), images("flat")
    with pytest.raises(ConfigError, match="counts are taken of SpikeDrivenTransformer"):
        count(torch.nn.Linear(1, 1), x)
    with pytest.raises(ConfigError, match="give both, or neither"):
        count(model, x, mean=(0, 0))
    with pytest.raises(ConfigError, match="one number for each of 2 channels"):
        count(model, x, mean=(0,), std=(1,))
    with pytest.raises(ShapeError, match="goes from 510 to 510"):
        count(model, torch.full_like(x, 2), mean=(0, 0), std=(1, 1))
    with pytest.raises(ShapeError, match=r"holds 127\.5; with mean"):
        count(model, torch.full_like(x, 0.5), mean=(0, 0), std=(1, 1))
    with pytest.raises(DataError, match="drop empty batches"):
        count(model, x[:0])
    counts = count(model, x)
    with pytest.raises(ConfigError, match="different networks or sizes"):
        counts.add(count(model, x[..., :4]))


def test_sums_beyond_single_precision_are_made_in_double(monkeypatch):
    from spikedriven.energy import counts as room

    model, x = model_of("flat"), images("flat")
    plain = figures(count(model, x))
    monkeypatch.setattr(room, "EXACT", 1)
    assert figures(count(model, x)) == plain
    # A layer of half a million neurons that all fire, in half precision.
    s = torch.ones(1, 1, 1 << 19, 1, 1, dtype=torch.bfloat16)
    seen = room._measure(s)
    room._read_out([seen])
    assert seen.total == [1 << 19]
