"""The neuron: its definition by hand, and the fused kernels against the definition."""

import pytest
import torch
from torch import Tensor

from spikedriven.core.lif import cpu, lif, reference
from spikedriven.core.surrogate import Sigmoid, spike

# one lane, around a vector, around a tile of 256 lanes, and one that divides nothing
CHANNELS = [1, 7, 8, 9, 63, 64, 65, 129, 257]
# Sums of up to 10^4 float32 terms in another order; float64 likewise.
SUM_BAND = {torch.float32: 2e-5, torch.float64: 1e-12}


def spikes_of(*currents: float, **arguments) -> list[float]:
    return reference.lif(torch.tensor(currents)[:, None], **arguments).flatten().tolist()


def test_a_sequence_by_hand_tells_a_hard_from_a_soft_reset():
    # u: 2 fires, resets to 0 (a soft reset would leave 1 and fire again); 0.6, 0.9, 1.05 fires
    assert spikes_of(4.0, 1.2, 1.2, 1.2) == [1, 0, 0, 1]


def test_a_tie_fires():
    assert spikes_of(2.0) == [1]
    assert spikes_of(1.9999) == [0]
    assert spike(torch.tensor([0.0, -1e-7]), Sigmoid()).tolist() == [1, 0]


def test_the_paper_scaling_is_the_same_neuron():
    # paper eq. 1-3 with beta = 0.5 and twice the threshold, no division of the input
    current = torch.randn(20, 500, dtype=torch.float64) * 2
    h = torch.zeros(500, dtype=torch.float64)
    expected = []
    for x in current:
        u = h + x
        s = (u >= 2).double()
        h = 0.5 * u * (1 - s)
        expected.append(s)
    assert torch.equal(reference.lif(current), torch.stack(expected))


def test_the_future_never_changes_the_past():
    current = torch.randn(8, 100) * 2
    changed = current.clone()
    changed[5:] += 3
    assert torch.equal(lif(current)[:5], lif(changed)[:5])
    assert not torch.equal(lif(current)[5:], lif(changed)[5:])


def test_the_surrogate_is_the_derivative_of_its_primitive():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Sigmoid().primitive(x).sum(), x)
    assert torch.allclose(slope, Sigmoid().derivative(x.detach()), rtol=1e-12)
    (backward,) = torch.autograd.grad(spike(x, Sigmoid()).sum(), x)
    assert torch.equal(backward, Sigmoid().derivative(x.detach()))


def results(module, x: Tensor, num_steps: int, training: bool) -> dict[str, Tensor]:
    """Spikes, running statistics and every gradient of one implementation."""
    channels = x.shape[2]
    generator = torch.Generator().manual_seed(channels)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=x.dtype).to(x.device)

    leaves = {
        "x": x.clone().requires_grad_(),
        "weight": (drawn(channels) + 0.5).requires_grad_(),
        "bias": (drawn(channels) + 0.5).requires_grad_(),
        "decay": torch.tensor(0.4, dtype=x.dtype, device=x.device, requires_grad=True),
    }
    norm = reference.Norm(
        weight=leaves["weight"],
        bias=leaves["bias"],
        running_mean=drawn(channels),
        running_var=drawn(channels) + 0.5,
        training=training,
    )
    s = module.norm_lif(leaves["x"], norm, num_steps, leaves["decay"], 1.0, Sigmoid())
    gradients = torch.autograd.grad((s * drawn(*s.shape)).sum(), list(leaves.values()))
    return {
        "s": s.detach(),
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        **{f"d{name}": g for name, g in zip(leaves, gradients, strict=True)},
    }


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "moving"])
def test_the_fused_kernels_are_the_definition(channels, training, static):
    x = torch.randn(1 if static else 5, 2, channels, 3, 3, dtype=torch.float64) * 2 + 0.5
    assert_same(x, 5, training)


@pytest.mark.parametrize("from_last", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_the_definition_of_one_image_at_one_step_knows_no_layout(last, from_last):
    x = torch.randn(1, 1, 8, 5, 5, dtype=torch.float64) * 2 + 0.5
    d = torch.randn(1, 1, 8, 5, 5, dtype=torch.float64)

    def gradients(x: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        ones = torch.ones(8, dtype=torch.float64)
        weight, bias = ones.clone().requires_grad_(), (ones / 2).requires_grad_()
        norm = reference.Norm(
            weight=weight, bias=bias, running_mean=ones * 0, running_var=ones, training=True
        )
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(reference.norm_lif(leaf, norm, 1), [leaf, weight, bias], d)

    def laid(x: Tensor, channels_last: bool) -> Tensor:
        return x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x

    # Of two equal images each has the gradient of one, but for its share in weight and bias.
    dx, dweight, dbias = gradients(*(torch.cat([y, y], 1) for y in (x, d)))
    found = gradients(laid(x, last), laid(d, from_last))
    for one, two in zip(found, (dx[:, :1], dweight / 2, dbias / 2), strict=True):
        assert torch.allclose(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 16, 32])
def test_the_fused_kernels_take_any_number_of_steps(num_steps):
    assert_same(torch.randn(num_steps, 3, 10, 2, 5, dtype=torch.float64) * 2, num_steps, True)


def test_the_fused_kernels_in_single_precision_are_the_definition():
    # whole eighths: no membrane comes near the threshold unless it ties, so no rounding decides
    x = torch.randint(-16, 24, (4, 4, 48, 8, 8)).float() / 8
    expected, found = results(reference, x, 4, False), results(cpu, x, 4, False)
    assert (expected["s"] != found["s"]).sum() <= 2
    s = cpu.lif(x, 0.5, 1.0, Sigmoid())
    assert torch.equal(s, reference.lif(x))
    assert 0.05 < s.mean() < 0.6


def assert_same(x: Tensor, num_steps: int, training: bool) -> None:
    expected, found = (results(m, x, num_steps, training) for m in (reference, cpu))
    assert expected["s"].mean() > 0.05
    for name, tensor in expected.items():
        scale = tensor.abs().max() + 1
        assert (found[name] - tensor).abs().max() <= SUM_BAND[x.dtype] * scale, name


def test_the_fused_kernels_repeat_with_any_number_of_threads():
    x = torch.randn(4, 8, 40, 9, 9)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(results(cpu, x, 4, True))
    finally:
        torch.set_num_threads(before)
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


def test_plain_neurons_take_any_shape_and_layout():
    for shape in [(3, 5), (3, 2, 7), (3, 2, 6, 4, 4)]:
        current = torch.randn(shape, dtype=torch.float64) * 2
        assert torch.equal(lif(current), reference.lif(current))
    strided = torch.randn(4, 4, 6, 2, 3, dtype=torch.float64).transpose(0, 1) * 2
    assert torch.equal(lif(strided), reference.lif(strided))


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 6, 1, 1), (3, 2, 6, 4, 4)], ids=str)
def test_spikes_may_be_changed_in_place(shape):
    current = (torch.randn(shape, dtype=torch.float64) * 2).requires_grad_()
    found, expected = (
        torch.autograd.grad(fire(current).mul_(3).square().sum(), current)[0]
        for fire in (lif, reference.lif)
    )
    assert expected.any()
    assert torch.allclose(found, expected, rtol=1e-12)


def test_the_reference_backward_is_its_derivative_by_hand():
    # one neuron, two steps, silent then silent: ds2/di1 = surr(u2) * (1 - decay) * decay
    current = torch.tensor([[0.5], [0.7]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reference.lif(current)[1].sum(), current)
    u2 = 0.25 + (0.7 - 0.25) / 2
    slope = Sigmoid().derivative(torch.tensor(u2 - 1, dtype=torch.float64)).item()
    assert gradient.flatten().tolist() == pytest.approx([slope / 4, slope / 2], rel=1e-12)
