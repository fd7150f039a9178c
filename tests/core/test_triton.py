"""The GPU's kernels are the definition: interpreted without a GPU, the same tests on one."""

import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from tests.core.test_lif import CHANNELS, results
from tests.helpers.poison import poison_fresh_memory

from spikedriven.core import attention, backend, lif, synapse
from spikedriven.core.attention import reference as plain_attention
from spikedriven.core.attention import triton as fused_attention
from spikedriven.core.lif import reference
from spikedriven.core.lif import triton as fused
from spikedriven.core.surrogate import Sigmoid
from spikedriven.core.synapse import reference as plain_synapse
from spikedriven.core.synapse import triton as packed
from spikedriven.errors import BackendError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Sums of up to 10^4 terms in another order.
SUM_BAND = {torch.float32: 2e-5, torch.float64: 1e-12}
# A result's own rounding, half a unit in its last place; the interpreter cuts bfloat16 off instead.
ROUNDING = {torch.bfloat16: 2.0 ** (-8 if DEVICE == "cuda" else -7), torch.float16: 2.0**-11}


@pytest.fixture(autouse=True)
def _nothing_is_left_unwritten(monkeypatch):
    poison_fresh_memory(monkeypatch)


def drawn(*shape: int, dtype=torch.float64) -> Tensor:
    return (torch.randn(*shape, dtype=torch.float64) * 2 + 0.5).to(DEVICE, dtype)


def spikes(rate: float, *shape: int, dtype=torch.float64) -> Tensor:
    return (torch.rand(*shape) < rate).to(DEVICE, dtype)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], band: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        scale = tensor.abs().max() + 1
        assert (found[name] - tensor).abs().max() <= band * scale, name  # NaN is never within


def assert_fires_alike(x: Tensor, num_steps: int, training: bool) -> None:
    expected, found = (results(m, x, num_steps, training) for m in (reference, fused))
    assert expected["s"].mean() > 0.05
    assert_same(found, expected, SUM_BAND[x.dtype])


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "moving"])
def test_the_neuron_is_the_definition(channels, training, static):
    assert_fires_alike(drawn(1 if static else 5, 2, channels, 3, 3), 5, training)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 16, 32])
def test_the_neuron_takes_up_to_32_steps(num_steps):
    assert_fires_alike(drawn(num_steps, 3, 10, 2, 5), num_steps, True)


def test_sums_of_many_programs_are_those_of_one(monkeypatch):
    monkeypatch.setattr(fused, "PROGRAMS", 8)  # each sums several tiles, the last a part of one
    monkeypatch.setattr(fused, "rows_of", lambda _columns, _steps: 2)
    assert_fires_alike(drawn(3, 3, 16, 5, 7), 3, True)


def test_statistics_far_from_zero_keep_their_digits():
    x = drawn(1, 4, 8, 9, 9, dtype=torch.float32) * 0.01 + 300
    mean, var = torch.ops.spikedriven.moments(x)
    exact = x.double()
    assert torch.allclose(mean.double(), exact.mean((0, 1, 3, 4)), rtol=1e-6)
    wanted = exact.var((0, 1, 3, 4), unbiased=False)  # squares of 300 would leave no digit of it
    assert torch.allclose(var.double(), wanted, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outside_is_single_precision_inside(dtype):
    # whole eighths: exact in either type, and no membrane is near the threshold unless it ties
    x = torch.randint(-16, 24, (4, 2, 16, 3, 5)).to(DEVICE, dtype) / 8
    norm, exact = norm_of(16, torch.float32), norm_of(16, torch.float64)
    weights = torch.rand(4, 2, 16, 3, 5, dtype=torch.float64).to(DEVICE).to(dtype)
    sides = []
    for module, leaf, given in (
        (fused, x.clone().requires_grad_(), norm),
        (reference, x.double().requires_grad_(), exact),
    ):
        s = module.norm_lif(leaf, given, 4, 0.5, 1.0, Sigmoid())
        grads = torch.autograd.grad((s * weights.to(s.dtype)).sum(), [leaf, given.weight])
        sides.append({"s": s.detach(), "dx": grads[0], "dweight": grads[1]})
    found, expected = sides
    assert found["s"].dtype == found["dx"].dtype == dtype
    assert found["dweight"].dtype == torch.float32
    assert torch.equal(found["s"].double(), expected["s"])
    assert 0.05 < expected["s"].mean() < 0.9
    error = (found["dx"].double() - expected["dx"]).abs()
    assert (error <= ROUNDING[dtype] * expected["dx"].abs() + 1e-6).all()
    assert torch.allclose(found["dweight"].double(), expected["dweight"], rtol=1e-5)


def norm_of(channels: int, dtype: torch.dtype) -> reference.Norm:
    """Statistics at rest; scale 1 and shift 0 but for a rounding, so that eighths stay eighths."""
    ones = torch.ones(channels, dtype=dtype, device=DEVICE)
    return reference.Norm(
        weight=ones.clone().requires_grad_(),
        bias=torch.full_like(ones, 1 / 16).requires_grad_(),
        running_mean=ones * 0,
        running_var=ones.clone(),
        training=False,
        eps=0.0,
    )


def added(module, x: Tensor, u: Tensor, training: bool, use: str) -> dict[str, Tensor]:
    """Stream, spikes and every gradient of one implementation; `use` says which result is used."""
    generator = torch.Generator().manual_seed(3)
    some = partial(torch.rand, generator=generator, dtype=x.dtype)
    channels = x.shape[2]
    leaves = {
        "x": x.clone().requires_grad_(),
        "u": u.clone().requires_grad_(),
        "weight": (some(channels) + 0.5).to(DEVICE).requires_grad_(),
        "bias": some(channels).to(DEVICE).requires_grad_(),
        "decay": torch.tensor(0.4, dtype=x.dtype, device=DEVICE, requires_grad=True),
    }
    norm = reference.Norm(
        weight=leaves["weight"],
        bias=leaves["bias"],
        running_mean=some(channels).to(DEVICE),
        running_var=(some(channels) + 0.5).to(DEVICE),
        training=training,
    )
    stream, s = module.norm_add_lif(leaves["x"], norm, leaves["u"], leaves["decay"], 1.0, Sigmoid())
    a, b = some(*x.shape).to(DEVICE), some(*x.shape).to(DEVICE)
    total = (stream * a).sum() * ("u" in use) + (s * b).sum() * ("s" in use)
    if use == "u":
        total = (stream * a).sum()
    if use == "s":
        total = (s * b).sum()
    grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    found = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return found | {"stream": stream.detach(), "s": s.detach(), "mean": norm.running_mean}


@pytest.mark.parametrize("use", ["us", "u", "s"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("channels", [1, 9, 64])
def test_norm_addition_and_neuron_in_one_are_the_three_in_turn(channels, training, use):
    x, u = drawn(4, 2, channels, 3, 2), drawn(4, 2, channels, 3, 2)
    expected, found = (added(m, x, u, training, use) for m in (reference, fused))
    assert expected["s"].mean() > 0.05
    assert_same(found, expected, SUM_BAND[x.dtype])


@pytest.mark.parametrize("num_steps", [1, 2, 7, 32])
def test_so_they_are_at_any_number_of_steps_and_odd_sizes(num_steps):
    x, u = drawn(num_steps, 3, 21, 1, 5), drawn(num_steps, 3, 21, 1, 5)
    expected, found = (added(m, x, u, True, "us") for m in (reference, fused))
    assert expected["s"].mean() > 0.05
    assert_same(found, expected, SUM_BAND[x.dtype])


def test_neurons_see_the_stream_as_it_is_kept():
    x, u = (drawn(4, 2, 16, 3, 3, dtype=torch.bfloat16) for _ in range(2))
    norm = norm_of(16, torch.float32)
    stream, s = fused.norm_add_lif(x, norm, u, 0.5, 1.0, Sigmoid())
    assert stream.dtype == s.dtype == torch.bfloat16
    assert torch.equal(s.float(), reference.lif(stream.float()))  # not the sum before rounding


def test_plain_neurons_take_any_shape_and_layout():
    for shape in [(3, 5), (3, 2, 7), (3, 2, 6, 4, 4)]:
        current = drawn(*shape)
        assert torch.equal(lif.lif(current, backend="triton"), reference.lif(current))
    strided = drawn(4, 4, 6, 2, 3).transpose(0, 1)
    assert torch.equal(lif.lif(strided, backend="triton"), reference.lif(strided))


def test_a_plain_neuron_learns_its_decay_and_ties_fire():
    current = drawn(6, 3, 11).requires_grad_()
    decay = torch.tensor(0.3, dtype=torch.float64, device=DEVICE, requires_grad=True)
    sides = [
        torch.autograd.grad((m.lif(current, decay, 1.0, Sigmoid()) ** 2).sum(), [current, decay])
        for m in (reference, fused)
    ]
    for expected, found in zip(*sides, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12)
    tie = torch.full((1, 1, 8), 2.0, dtype=torch.float64, device=DEVICE)
    assert fused.lif(tie, 0.5, 1.0, Sigmoid()).tolist() == [[[1.0] * 8]]


# ------------------------------------------------------------------ spikes as bits


@pytest.mark.parametrize("channels", CHANNELS)
def test_bits_give_the_spikes_back(channels):
    s = spikes(0.4, 2, channels, 3, 5)
    bits = packed.pack(s)
    assert bits.shape == (30, -(-channels // 8))
    assert bits.dtype == torch.uint8
    by_hand = (s.movedim(1, -1).reshape(30, channels)[:, 0] != 0).to(torch.uint8)
    assert torch.equal(bits[:, 0] & 1, by_hand)  # the first channel is the lowest bit
    assert torch.equal(packed.unpack(bits, list(s.shape), s.dtype), s)
    ones = sum(int(byte).bit_count() for byte in bits.flatten().tolist())
    assert ones == int(s.sum())  # and the bits beyond the last channel are zero


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_convolution_that_keeps_bits_has_the_gradients_of_one_that_keeps_bytes(bias):
    s, weight = spikes(0.3, 2, 9, 5, 4).requires_grad_(), drawn(6, 9, 3, 3).requires_grad_()
    leaves = [s, weight, *([drawn(6).requires_grad_()] if bias else [])]
    sides = []
    for module in (plain_synapse, packed):
        current = module.spike_conv2d(s, weight, leaves[2] if bias else None, padding=1)
        sides.append([current, *torch.autograd.grad((current**2).sum(), leaves)])
    for expected, found in zip(*sides, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (8, 8), (9, 7)], ids=str)
@pytest.mark.parametrize("channels", [1, 9])
def test_a_pool_that_keeps_winners_sends_the_gradient_where_torchs_does(channels, size):
    s = spikes(0.2, 2, channels, *size).requires_grad_()
    ours, theirs = (m.spike_pool(s) for m in (packed, plain_synapse))
    assert torch.equal(ours, theirs)
    d = torch.randn_like(ours)
    mine, wanted = (torch.autograd.grad(out, s, d)[0] for out in (ours, theirs))
    assert torch.allclose(mine, wanted, rtol=1e-12)


# ------------------------------------------------------------------ attention


def attended(module, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    gate = partial(reference.lif, v_threshold=attention.GATE_THRESHOLD)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    counts = module.agreement(*leaves[1:])
    out = module.mask(leaves[0], gate(counts))
    weights = torch.arange(out.numel(), dtype=out.dtype, device=DEVICE).view(out.shape) / 100
    return [counts, out, *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("channels", [1, 7, 8, 65, 130])
@pytest.mark.parametrize("side", [(1, 1), (3, 5), (14, 14)], ids=str)
def test_attention_and_its_gradients_are_the_definition(channels, side):
    if side == (14, 14) and channels > 8:
        side = (9, 2)  # the interpreter is slow
    q, k, v = (spikes(rate, 3, 2, channels, *side) for rate in (0.4, 0.3, 0.3))
    expected, found = attended(plain_attention, q, k, v), attended(fused_attention, q, k, v)
    for wanted, got in zip(expected, found, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 32])
def test_attention_takes_any_number_of_steps(num_steps):
    q, k, v = (spikes(rate, num_steps, 1, 9, 2, 3) for rate in (0.4, 0.3, 0.3))
    expected, found = attended(plain_attention, q, k, v), attended(fused_attention, q, k, v)
    for wanted, got in zip(expected, found, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-12)


def test_half_precision_counts_agreements_exactly():
    ones = torch.ones(1, 1, 2, 17, 18, dtype=torch.bfloat16, device=DEVICE)
    counts = attention.agreement(ones, ones, backend="triton")
    assert counts.tolist() == [[[306.0, 306.0]]]  # bfloat16 counts to 256
    masked = attention.mask(ones, counts, backend="triton")
    assert masked.dtype == torch.bfloat16
    assert masked.sum() == 612


# ------------------------------------------------------------------ operators and the choice


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own look at it
def test_the_operators_keep_torchs_rules():
    x, u = drawn(2, 1, 8, 2, 2).requires_grad_(), drawn(2, 1, 8, 2, 2).requires_grad_()
    weight, bias = drawn(8).requires_grad_(), drawn(8).requires_grad_()
    mean, var = drawn(8), drawn(8).abs() + 1
    decay = torch.tensor(0.5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    s = spikes(0.5, 2, 1, 8, 2, 2).requires_grad_()
    numbers = (1e-5, 2, 1.0, 4.0, True)
    ops = torch.ops.spikedriven
    checks = [
        (ops.moments, (x.detach(),)),
        (ops.fire, (x, None, weight, bias, mean, var, decay, *numbers)),
        (ops.fire, (x, u, weight, bias, mean, var, decay, *numbers)),
        (ops.fire, (x, None, None, None, None, None, decay, *numbers)),
        (ops.pack, (s[0].detach(),)),
        (ops.unpack, (packed.pack(s[0].detach()), [1, 8, 2, 2], torch.float64)),
        (ops.pool, (s[0].detach().clone().requires_grad_(),)),
        (ops.agreement, (s, s.detach().clone().requires_grad_())),
        (ops.mask, (s, drawn(2, 1, 8).requires_grad_())),
    ]
    for operator, arguments in checks:
        torch.library.opcheck(operator.default, arguments)


def test_the_network_compiles_to_one_graph_with_the_same_numbers():
    run(Path(__file__).with_name("compiled_fused.py"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU compiles them anyway")
def test_every_kernel_compiles_for_a_gpu_that_is_not_there():
    run(Path(__file__).with_name("compiled_kernels.py"), TRITON_INTERPRET="0")


def run(script: Path, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert done.returncode == 0, done.stderr


def test_an_empty_batch_is_an_empty_answer():
    nothing = torch.zeros(4, 0, 8, 3, 3, device=DEVICE)
    norm = norm_of(8, torch.float32)
    assert lif.norm_lif(nothing, norm, 4).shape == (4, 0, 8, 3, 3)
    assert lif.lif(nothing).shape == (4, 0, 8, 3, 3)
    stream, s = lif.norm_add_lif(nothing, norm, nothing)
    assert stream.shape == s.shape == (4, 0, 8, 3, 3)
    assert attention.agreement(nothing, nothing).shape == (4, 0, 8)
    assert attention.mask(nothing, nothing[..., 0, 0]).shape == (4, 0, 8, 3, 3)
    weight = torch.zeros(2, 8, 3, 3, device=DEVICE)
    assert synapse.spike_conv2d(nothing[0], weight, None, 1).shape == (0, 2, 3, 3)
    assert synapse.spike_pool(nothing[0]).shape == (0, 8, 2, 2)


@pytest.mark.parametrize(
    ("x", "steps", "name", "message"),
    [
        (torch.zeros(0), 4, "triton", "is empty"),
        (torch.zeros(1, dtype=torch.int32), 4, "triton", "must be real"),
        (torch.zeros(1), 33, "triton", "at most 32"),
        (torch.zeros(1), 4, "cuda", "must be one of auto, reference, triton"),
    ],
    ids=["empty", "integers", "steps", "unknown"],
)
def test_a_request_that_cannot_be_met_is_refused(x, steps, name, message):
    with pytest.raises(BackendError, match=message):
        backend.choose(x, steps, name)


def test_triton_is_refused_where_it_or_a_gpu_is_missing(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="must lie on a GPU"):
        backend.choose(torch.zeros(1), 4, "triton")
    monkeypatch.setattr(backend, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match="not installed"):
        lif.lif(torch.zeros(2, 1), backend="triton")
    assert lif.lif(torch.zeros(2, 1)).tolist() == [[0.0], [0.0]]  # auto needs neither


@pytest.mark.parametrize(
    ("dtype", "taken"), [(torch.float16, "reference"), (torch.float32, "cpu")], ids=str
)
def test_auto_says_once_what_it_takes(caplog, dtype, taken):
    backend._say.cache_clear()
    x = torch.zeros(2, 2, dtype=dtype)
    with caplog.at_level(logging.INFO, "spikedriven"):
        lif.lif(x)
        lif.lif(x)
    assert caplog.messages == [f"backend auto on cpu takes {taken}"]


def test_synapses_take_what_they_are_told():
    s = spikes(0.5, 1, 3, 6, 6)
    assert torch.equal(synapse.spike_pool(s, backend="triton"), plain_synapse.spike_pool(s))
    with pytest.raises(BackendError, match="is empty"):
        synapse.spike_conv2d(s[:0], drawn(2, 3, 3, 3), None, 1, backend="triton")
