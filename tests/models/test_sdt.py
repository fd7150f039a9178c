"""The model: nothing in it is dead, nothing leaks, and wrong inputs are refused in words."""

import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import spikedriven as sd
from spikedriven.errors import ConfigError, ShapeError
from spikedriven.models.sdt import _check_input
from spikedriven.models.variants import VARIANTS

TINY = sd.SDTConfig(2, 32, 7, stem_pool="0011", num_heads=4)
# paper.md 1.6: the released files carry 64 more per block (8 heads: an unused 8 x 8 matrix)
RELEASED_PARAMETERS = {
    "sdt_8_384": 16_816_536,
    "sdt_6_512": 23_373_736,
    "sdt_8_512": 29_689_896,
    "sdt_10_512": 36_006_056,
    "sdt_8_768": 66_339_144,
    "sdt_2_256_cifar": 2_567_082,
    "sdt_2_512_cifar": 10_233_546,
    "sdt_2_256_cifar10dvs": 2_566_794,
    "sdt_2_256_gesture": 2_567_051,
}
RELEASED_CIFAR100_PARAMETERS = {"sdt_2_256_cifar": 2_590_212, "sdt_2_512_cifar": 10_279_716}

NESTED = torch.nested.nested_tensor(2 * [torch.zeros(3, 16, 16)], layout=torch.jagged)


def lively(config: sd.SDTConfig) -> sd.SpikeDrivenTransformer:
    """A float64 model whose layers fire: norms drawn, not at rest."""
    torch.manual_seed(1)
    model = sd.SpikeDrivenTransformer(config).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, 0, 1)
            module.momentum = 1.0
    model(torch.randn(8, config.in_channels, 16, 16, dtype=torch.float64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def images(count: int = 3, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.randn(count, channels, size, size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "classes", "released"),
    [
        *((name, {}, count) for name, count in RELEASED_PARAMETERS.items()),
        *((name, {"num_classes": 100}, n) for name, n in RELEASED_CIFAR100_PARAMETERS.items()),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, classes, released):
    with torch.device("meta"):
        model = sd.create_model(name, **classes)
    unused = 64 * model.config.depth
    assert sum(p.numel() for p in model.parameters()) + unused == released


def test_every_variant_is_tested_or_ours():
    assert set(sd.list_models()) == {*RELEASED_PARAMETERS, "sdt_tiny"} == set(VARIANTS)


@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("dvs_dilation", [False, True])
def test_every_parameter_receives_a_gradient(neuron, dvs_dilation):
    model = lively(replace(TINY, neuron=neuron, dvs_dilation=dvs_dilation))
    (model(images()) ** 2).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("conv.bias"):  # zero by mathematics in front of a batch norm
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 3},
        {"width": 40},
        {"num_classes": 8},
        {"in_channels": 2},
        {"num_steps": 2},
        {"mlp_ratio": 2.0},
        {"num_heads": 2, "dvs_dilation": True},
        {"stem_pool": "0110"},
        {"neuron": "plif"},
        {"dvs_dilation": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_config_field_changes_something(change):
    base = replace(TINY, dvs_dilation=True) if "num_heads" in change else TINY
    before, after = lively(base).eval(), lively(replace(base, **change)).eval()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (before, after)]
    if change.get("in_channels"):
        assert sizes[0] != sizes[1]
        return
    x = images()
    assert sizes[0] != sizes[1] or not torch.equal(before(x), after(x))


def test_the_list_of_changed_fields_is_complete():
    tested = {"depth", "width", "num_classes", "in_channels", "num_steps", "mlp_ratio"}
    tested |= {"num_heads", "stem_pool", "neuron", "dvs_dilation"}
    assert {field.name for field in fields(sd.SDTConfig)} == tested


def test_heads_change_nothing_without_dilation():
    x = images()
    one, four = (lively(replace(TINY, num_heads=n)).eval() for n in (1, 4))
    assert torch.equal(one(x), four(x))


def test_samples_of_a_batch_never_influence_each_other():
    model, x = lively(TINY).eval(), images(4)
    together = model.forward_steps(x)
    for n in range(4):
        # another batch size is another order of float64 sums
        assert torch.allclose(model.forward_steps(x[n : n + 1])[:, 0], together[:, n], atol=1e-9)


def test_the_future_never_influences_the_past():
    model = lively(TINY).eval()
    x = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] *= -1
    before, after = model.forward_steps(x), model.forward_steps(changed)
    assert torch.equal(before[:4], after[:4])
    assert not torch.equal(before[4:], after[4:])


def test_training_counts_its_batches_and_evaluation_does_not():
    model = sd.SpikeDrivenTransformer(TINY)
    model(images().float())
    model.eval()(images().float())
    counted = {int(m.num_batches_tracked) for m in model.modules() if hasattr(m, "running_mean")}
    assert counted == {1}


def test_two_calls_in_a_row_equal_two_fresh_calls():
    model, x = lively(TINY).eval(), images()
    first = model(x)
    model(images() * 3)
    assert torch.equal(model(x), first)
    assert torch.equal(lively(TINY).eval()(x), first)


@pytest.mark.parametrize("training", [True, False])
def test_a_static_image_equals_the_same_frame_at_every_step(training):
    x = images()
    once, repeated = lively(TINY).train(training), lively(TINY).train(training)
    shown = x[:, None].expand(-1, TINY.num_steps, -1, -1, -1)
    a, b = once(x), repeated(shown)
    assert torch.allclose(a, b, atol=1e-9)
    a.square().sum().backward()
    b.square().sum().backward()
    for (name, p), q in zip(once.named_parameters(), repeated.parameters(), strict=True):
        largest = max(r.grad.abs().max() for r in once.parameters())
        assert torch.allclose(p.grad, q.grad, rtol=1e-8, atol=1e-12 * largest), name
    for (name, p), q in zip(once.named_buffers(), repeated.buffers(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains_with_finite_gradients(dtype):
    model = lively(TINY).float()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(images().float()).float().square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 2, 16, 16), "has 2 channels"),
        (torch.zeros(3, 16, 16), "must be real"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "must be real"),
        (torch.zeros(1, 0, 3, 16, 16), "has an empty axis"),
        (torch.zeros(1, 3, 18, 16), "multiples of 4"),
        (torch.full((1, 3, 16, 16), float("nan")), "NaN"),
        (torch.zeros(1, 3, 16, 16).double(), r"convert it with x\.to\(torch\.float32\)"),
        (torch.zeros(1, 3, 16, 16).half(), r"convert it with x\.to\(torch\.float32\)"),
        (torch.zeros(1, 3, 16, 16).cfloat(), "must be real"),
        (torch.zeros(1, 3, 16, 16).to_sparse(), r"sparse.*must be dense.*x\.to_dense\(\)"),
        (torch.zeros(1, 3, 16, 16).to_mkldnn(), r"_mkldnn.*must be dense: .* x\.to_dense\(\)"),
        (NESTED, r"nested.*must be dense: .* x\.to_padded_tensor\(0\)"),
        (torch.zeros(1, 3, 16, 16, device="meta"), "on meta and the model's weights are on cpu"),
        (torch.zeros(1, 1, 3, 4, 4), r"one value.*more images.*model\.eval\(\)"),
    ],
    ids=["channels", "rank", "integers", "no steps", "size", "NaN", "double", "half", "complex",
         "sparse", "mkldnn", "nested", "meta", "one value"],
)  # fmt: skip
def test_a_wrong_input_is_refused_in_words(x, message):
    with pytest.raises(ShapeError, match=message):
        sd.SpikeDrivenTransformer(TINY)(x)


def test_a_model_on_meta_tells_shapes_and_meets_no_pixels():
    with torch.device("meta"):
        model = sd.SpikeDrivenTransformer(TINY)
        assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    with pytest.raises(ShapeError, match="on cpu and the model's weights are on meta"):
        model(torch.zeros(2, 3, 16, 16))


def test_autocast_does_not_convert_an_eighth_of_a_float():
    model = sd.SpikeDrivenTransformer(TINY)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ShapeError, match=r"convert it with x\.to\(torch\.float32\)"),
    ):
        model(images().to(torch.float8_e4m3fn))


@pytest.mark.parametrize("x", [None, [[0.0]], np.zeros((1, 3, 16, 16), np.float32)], ids=type)
def test_an_input_that_is_no_tensor_is_refused_in_words(x):
    # Not by the model: in these tests its signature is checked before its body.
    with pytest.raises(ShapeError, match="it must be a tensor"):
        _check_input(x, TINY, torch.zeros(()))


def test_autocast_takes_what_it_converts_and_nothing_else():
    model = sd.SpikeDrivenTransformer(TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images().bfloat16()).shape == (3, 7)
        with pytest.raises(ShapeError, match=r"this model computes in torch\.float32"):
            model(images())


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"num_steps": True}, "a whole number"),
        ({"mlp_ratio": float("nan")}, "a finite number"),
        ({"mlp_ratio": float("inf")}, "a finite number"),
    ],
    ids=["bool", "nan", "inf"],
)
def test_a_config_refuses_another_type_and_says_which_it_must_be(change, wanted):
    # The other types meet, in these tests, the check of the signature before; see tests/data.
    with pytest.raises(ConfigError, match=f"; it must be {wanted}: convert it$"):
        sd.create_model("sdt_tiny", **change)


def test_weights_begin_as_released():
    """Normal with deviation 0.02 for convolutions, no bias, norms one: `_init_weights` there."""
    model = sd.SpikeDrivenTransformer(replace(TINY, width=128))
    for name, parameter in model.named_parameters():
        if name.endswith("conv.weight"):
            # Of n normal draws the deviation is itself drawn, with a relative one of 1 / sqrt(2 n).
            spread = 5 / (2 * parameter.numel()) ** 0.5
            assert abs(parameter.std().item() / 0.02 - 1) < spread, name
            assert abs(parameter.mean().item()) < 0.02 * 5 / parameter.numel() ** 0.5, name
        elif name.endswith(("conv.bias", "norm.bias")):
            assert not parameter.any(), name
        elif name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
    assert sum(name.endswith("conv.bias") for name, _ in model.named_parameters()) == 3 * TINY.depth


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"width": 33}, "multiple of 8"),
        ({"num_heads": 3}, "must divide"),
        ({"stem_pool": "11"}, "four characters"),
        ({"neuron": "alif"}, "lif, plif"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"width": 2**20}, "width \\* mlp_ratio must lie in 1 to 1048576: lower width"),
    ],
)
def test_a_config_refuses_nonsense(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


CALLS = {
    "sd.create_model(5)": "ConfigError: there is no model 5; the models are",
    "sd.SpikeDrivenTransformer({})": "ConfigError: the config is of type dict; it must be SDT",
    "sd.load_official(None)": "CheckpointError: the source is of type NoneType; it must be the",
    "sd.to_official_state_dict(line)": "ConfigError: the model is a Linear; released names are of",
    "record(None)": "ConfigError: the model is a NoneType; it must be a module that holds neurons",
    "record(line)": "ConfigError: the model is a Linear without neurons of this package; it must",
    "sd.audit(None, x)": "ConfigError: the model is a NoneType; it must be a torch.nn.Module: ",
    "sd.audit(line, None)": "ShapeError: the input is of type NoneType; it must be a tensor: ",
    "sd.audit(line.to('meta'), x.to('meta'))": "ConfigError: a tensor on meta has no values; an",
    "sd.energy(None)": "ConfigError: counted is of type NoneType; it must be Counts or an Estimate",
    "sd.count(hollow, x.to('meta'))": "ConfigError: the model is on meta and has no values; ",
    "sd.compile(hollow)": "ConfigError: the model is on meta and has no values; ",
}


def test_an_argument_of_another_kind_is_one_sentence():
    """In a process of its own: here beartype would be the first to speak."""
    code = f"""
import torch, spikedriven as sd
line, x = torch.nn.Linear(2, 2), torch.zeros(1, 1, 16, 16)
hollow = sd.create_model("sdt_tiny", width=32).to("meta").eval()
def record(model):
    with sd.record_spikes(model): pass
for call in {list(CALLS)}:
    try: eval(call)
    except Exception as error: print(f"{{type(error).__name__}}: {{error}}".splitlines()[0])
    else: print("nothing was raised")
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    said = dict(zip(CALLS, done.stdout.splitlines(), strict=True))
    assert {call: line for call, line in said.items() if not line.startswith(CALLS[call])} == {}


def test_an_unknown_model_or_field_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean sdt_8_512\?"):
        sd.create_model("sdt_8_521")
    with pytest.raises(ConfigError, match=r"did you mean num_steps\?"):
        sd.create_model("sdt_tiny", num_step=4)


@pytest.mark.parametrize("stem_pool", ["0011", "0110"])
def test_currents_and_their_gradients_lie_channels_last(stem_pool):
    model = lively(replace(TINY, stem_pool=stem_pool))
    last, found = torch.channels_last, {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_full_backward_pre_hook(
                lambda _module, d, name=name: found.update({name: d[0]})
            )
    (model(images()) ** 2).sum().backward()
    assert len(found) == 5 + 6 * model.config.depth
    assert [n for n, d in found.items() if not d.is_contiguous(memory_format=last)] == []
