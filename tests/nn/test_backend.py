"""One request reaches every layer of a model, and what a network computes does not depend on it."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from tests.helpers.lively import lively
from tests.helpers.poison import poison_fresh_memory
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import spikedriven as sd
from spikedriven.core import lif
from spikedriven.errors import BackendError
from spikedriven.nn import synapse
from spikedriven.nn.backend import use_backend
from spikedriven.nn.neuron import LIF
from spikedriven.nn.synapse import sync_norms
from spikedriven.train.recompute import recompute_blocks
from spikedriven.train.shard import divide, own_part

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Float64: sums of up to 10^4 terms in another order, through nine layers.
BAND = 1e-9


@pytest.fixture
def model() -> sd.SpikeDrivenTransformer:
    config = sd.SDTConfig(2, 16, 5, stem_pool="1011", num_heads=2, neuron="plif")
    return lively(config, size=16).double().to(DEVICE).train()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, dtype=torch.float64).to(DEVICE)


@pytest.fixture
def in_one(monkeypatch) -> list[Tensor]:
    """The streams that norm, addition and neurons in one have written."""
    streams: list[Tensor] = []

    def once(*given, **named):
        found = lif.norm_add_lif(*given, **named)
        streams.append(found[0].detach())
        return found

    monkeypatch.setattr(synapse, "norm_add_lif", once)
    return streams


def test_every_spike_and_gradient_of_a_network_is_the_definitions(model, x, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")
    fused = copy.deepcopy(model)
    use_backend(model, "reference")
    use_backend(fused, "triton")
    assert_the_same(model, fused, x)
    # Behind the position embedding, attention and MLP; the last MLP feeds the head's mean.
    assert len(in_one) == 2 * model.config.depth


@pytest.mark.parametrize("num_steps", [1, 3, 32])
def test_so_it_is_at_any_number_of_steps_and_odd_sizes(num_steps, in_one, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    poison_fresh_memory(monkeypatch)
    config = sd.SDTConfig(
        1, 24, 3, num_steps=num_steps, mlp_ratio=1.4, stem_pool="0011", num_heads=1
    )
    model = lively(config, size=24).double().to(DEVICE).train()
    fused = copy.deepcopy(model)
    use_backend(model, "reference")
    use_backend(fused, "triton")
    side = 4 if num_steps == 32 else 20
    assert_the_same(model, fused, torch.rand(2, 3, 8, side, dtype=torch.float64).to(DEVICE))
    assert len(in_one) == 2


def test_so_it_is_in_evaluation_and_of_no_images_there_are_no_logits(model, x, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")
    fused = copy.deepcopy(model.eval())
    use_backend(model, "reference")
    use_backend(fused, "triton")
    assert_the_same(model, fused, x)
    assert len(in_one) == 2 * model.config.depth
    use_backend(fused, "auto")
    assert fused(x[:0]).shape == (0, 5)


WATCHED = {
    "layer": lambda model: model.blocks[0].attention.project.register_forward_hook,
    "what enters it": lambda model: model.blocks[0].mlp.contract.register_forward_pre_hook,
    "norm": lambda model: model.stem.position.norm.register_forward_hook,
    "gradient": lambda model: model.blocks[1].attention.project.register_full_backward_hook,
}


@pytest.mark.parametrize("place", WATCHED)
def test_a_watched_layer_is_computed_on_its_own_with_the_same_numbers(model, x, in_one, place):
    pytest.importorskip("triton", reason="Triton is not installed")
    fused = copy.deepcopy(model)
    use_backend(model, "reference")
    use_backend(fused, "triton")
    calls = []
    handle = WATCHED[place](fused)(lambda *_seen: calls.append(place))
    assert_the_same(model, fused, x)
    assert calls == [place]
    assert len(in_one) == 2 * model.config.depth - 1
    handle.remove()
    fused(x)
    assert len(in_one) == 4 * model.config.depth - 1  # and in one again


def test_whoever_watches_everything_sees_every_layer(model, x, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")
    use_backend(model, "triton")
    called = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _inputs, _output: called.add(module)
    )
    try:
        model(x)
    finally:
        hook.remove()
    assert {block.mlp.contract for block in model.blocks} < called
    assert not in_one


def test_neurons_that_read_the_stream_are_seen_with_what_they_read(model, x, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")
    use_backend(model, "triton")
    seen = []
    for block in model.blocks:
        for neurons in (block.attention.fire, block.mlp.fire):
            neurons.register_forward_hook(lambda _lif, inputs, s: seen.append((*inputs, s)))
    model(x)
    assert len(seen) == len(in_one) == 2 * model.config.depth
    for (u, s), stream in zip(seen, in_one, strict=True):
        assert torch.equal(u, stream)
        assert s.any()


AHEAD = {
    "input": lambda fire, note: fire.register_forward_pre_hook(
        lambda _lif, given: (note(), given[0] * 0.9)[1:]
    ),
    "gradient": lambda fire, note: fire.register_full_backward_hook(
        lambda _lif, given, _of_spikes: (note(), *(2 * d for d in given))[1:]
    ),
    "gradient of spikes": lambda fire, note: fire.register_full_backward_pre_hook(
        lambda _lif, of_spikes: (note(), *(2 * d for d in of_spikes))[1:]
    ),
}


@pytest.mark.parametrize("place", AHEAD)
def test_who_looks_at_more_of_a_reader_than_its_spikes_may_change_it(model, x, in_one, place):
    pytest.importorskip("triton", reason="Triton is not installed")
    fused = copy.deepcopy(model)
    use_backend(model, "reference")
    use_backend(fused, "triton")
    calls = []
    for net in (model, fused):
        AHEAD[place](net.blocks[0].mlp.fire, lambda: calls.append(place))
    assert_the_same(model, fused, x)
    assert calls == [place] * 2
    assert len(in_one) == 2 * model.config.depth - 1


def test_neurons_and_layers_of_a_users_own_are_called(model, x, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")

    class Tired(LIF):
        def forward(self, i, *_given, **_named):
            return torch.zeros_like(i)

    model.blocks[0].mlp.fire = Tired()
    model.blocks[0].mlp.contract.norm.forward = torch.ones_like
    sync_norms(model.blocks[1])
    model.to(x)
    use_backend(model, "triton")
    with sd.record_spikes(model) as spikes:
        model(x)
    assert not spikes["blocks.0.mlp.fire"].any()
    assert len(in_one) == 1  # behind the position embedding


def test_the_stream_keeps_its_type_and_rounds_once_at_most(model, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")
    model.float()
    use_backend(model, "triton")
    layer, reader = model.stem.position, model.blocks[0].attention.fire
    u = (torch.randn(4, 2, 16, 2, 2) * 2).to(DEVICE, torch.bfloat16)
    s = (torch.rand(4, 2, 16, 2, 2) < 0.3).to(DEVICE, torch.bfloat16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        stream, fired = synapse.add_and_fire(u, layer, s, reader)
        layer.register_forward_hook(lambda *_seen: None)
        apart, _ = synapse.add_and_fire(u, layer, s, reader)
    assert len(in_one) == 1
    assert stream.dtype == apart.dtype == fired.dtype == torch.bfloat16
    # Apart the norm's result is rounded before it is added: units in the last place, of each.
    band = 2.0**-7 * (apart.abs() + (apart - u).abs()).float() + 1e-6
    assert ((stream.float() - apart.float()).abs() <= band).all()


@pytest.mark.parametrize(("num_steps", "kept"), [(32, torch.bfloat16), (33, torch.float32)])
def test_more_steps_than_the_kernels_take_are_in_single_precision(monkeypatch, num_steps, kept):
    # as `auto` chooses on a GPU: there the reference holds membranes in the type of the stream
    monkeypatch.setattr(
        synapse, "choose", lambda _x, steps, _name: "triton" if steps <= 32 else "reference"
    )
    layer = synapse.ConvNorm(synapse.pointwise(8, 8, bias=False)).to(DEVICE)
    s = (torch.rand(num_steps, 2, 8, 2, 2) < 0.3).float().to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert layer(s).dtype == kept


def test_blocks_computed_again_are_in_one_both_times(model, x, in_one):
    pytest.importorskip("triton", reason="Triton is not installed")
    fused = copy.deepcopy(model)
    use_backend(model, "triton")
    use_backend(fused, "triton")
    recompute_blocks(fused)
    assert_the_same(model, fused, x)  # with its probes gone before the way back
    assert len(in_one) >= 4 + 4 + 2  # of the first block the last ends the second walk early


def test_a_model_divided_among_processes_is_in_one_too(x, in_one, tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    model = lively(sd.SDTConfig(2, 16, 5, stem_pool="1011", num_heads=2)).double().train()
    use_backend(model, "triton")
    parts = copy.deepcopy(model.to(DEVICE))
    where = {"init_method": f"file://{tmp_path}/met", "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo", **where)
    try:
        divide(parts, init_device_mesh(DEVICE, (1,)))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .FSDPSpikeDrivenTransformer.")
            logits = parts.forward_steps(x)  # its head's linear map gives a view, as it always did
        wanted = model.forward_steps(x)
        assert torch.allclose(logits, wanted, rtol=BAND)
        assert len(in_one) == 4 * model.config.depth
        logits.square().sum().backward()
        wanted.square().sum().backward()
        for (name, p), q in zip(model.named_parameters(), parts.parameters(), strict=True):
            assert torch.allclose(own_part(q.grad), p.grad, rtol=BAND, atol=BAND), name
    finally:
        dist.destroy_process_group()


def assert_the_same(model: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Compare every spike, the logits, every gradient and every statistic of a training step."""
    with sd.record_spikes(model) as expected:
        logits = model(x)
    with sd.record_spikes(fused) as found:
        same = fused(x)
    assert list(expected) == list(found)  # in the order in which they fire
    for name, s in expected.items():
        assert torch.equal(s, found[name]), name
        assert s.any(), name
    assert torch.allclose(same, logits, rtol=BAND)
    logits.square().sum().backward()
    same.square().sum().backward()
    largest = max(p.grad.abs().max() for p in model.parameters())
    for (name, p), q in zip(model.named_parameters(), fused.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= BAND * largest, name
    for (name, p), q in zip(model.named_buffers(), fused.buffers(), strict=True):
        assert torch.allclose(p, q, rtol=BAND), name


def test_autocast_trains_with_half_precision_between_the_layers(model, x):
    pytest.importorskip("triton", reason="Triton is not installed")
    model.float()
    use_backend(model, "triton")
    types = set()
    for layer in (model.stem.fourth, model.blocks[0].mlp.contract, model.blocks[0].attention.key):
        layer.register_forward_hook(lambda _layer, _inputs, out: types.add(out.dtype))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        model(x.float()).float().square().sum().backward()
    assert types == {torch.bfloat16}
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.abs().max() > 0 for p in model.parameters())


def test_a_request_reaches_every_layer_and_an_unknown_one_is_refused(model, x, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for part in (model.stem.image.lif, model.stem, model.blocks[0].attention, model.head_lif):
        assert part.backend == "auto"
    use_backend(model, "triton")
    with pytest.raises(BackendError, match="must lie on a GPU"):
        model.cpu()(x.cpu())
    use_backend(model, "auto")
    model.cpu()(x.cpu())
    with pytest.raises(BackendError, match="must be one of auto, reference, triton"):
        use_backend(model, "cupy")
