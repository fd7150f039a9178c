"""One request reaches every layer of a model, and what a network computes does not depend on it."""

import copy

import pytest
import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.errors import BackendError
from spikedriven.nn.backend import use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Float64: sums of up to 10^4 terms in another order, through nine layers.
BAND = 1e-9


@pytest.fixture
def model() -> sd.SpikeDrivenTransformer:
    config = sd.SDTConfig(1, 16, 5, stem_pool="1011", num_heads=2, neuron="plif")
    return lively(config, size=16).double().to(DEVICE).train()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, dtype=torch.float64).to(DEVICE)


def test_every_spike_and_gradient_of_a_network_is_the_definitions(model, x):
    pytest.importorskip("triton", reason="Triton is not installed")
    fused = copy.deepcopy(model)
    use_backend(model, "reference")
    use_backend(fused, "triton")
    with sd.record_spikes(model) as expected:
        logits = model(x)
    with sd.record_spikes(fused) as found:
        same = fused(x)
    assert expected.keys() == found.keys()
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
