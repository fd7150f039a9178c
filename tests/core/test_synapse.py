"""Synapses of spikes: the event-driven convolution is PyTorch's dense one, with every gradient."""

import os
import platform
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import Tensor

from spikedriven.core.simd import load_first, load_real, store_first
from spikedriven.core.synapse import cpu, reference, spike_conv2d, spike_pool

# Sums of up to 10^4 terms near 1 in another order.
SUM_BAND = {torch.float32: 1e-4, torch.float64: 1e-12}
# (B, C, D, H, W, k): channels around a word of 64, outputs around a panel of 64 (32 in float64),
# pixels around a block; images of one pixel, of one row, larger than a block; a window larger than
# the nearest caches
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 3),
    (3, 63, 31, 6, 7, 3),
    (2, 64, 32, 9, 3, 3),
    (2, 65, 33, 8, 8, 1),
    (70, 129, 65, 2, 1, 1),
    (2, 17, 64, 1, 40, 3),
    (2, 7, 129, 20, 19, 3),
    (2, 3, 5, 8, 6, 5),
    (2, 70, 65, 5, 4, 3),
]


def spikes(rate: float, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.rand(*shape) < rate).to(dtype)


def drawn(shape: tuple[int, ...], rate: float, dtype: torch.dtype) -> list[Tensor]:
    """Spikes, weight and bias of a layer, as leaves."""
    B, C, D, H, W, k = shape
    s = spikes(rate, B, C, H, W, dtype=dtype)
    weight, bias = torch.randn(D, C, k, k, dtype=dtype), torch.randn(D, dtype=dtype)
    return [x.requires_grad_() for x in (s, weight, bias)]


def results(current: Tensor, leaves: list[Tensor]) -> dict[str, Tensor]:
    """The current and every gradient, for the same random gradient of the current."""
    generator = torch.Generator().manual_seed(3)
    d = torch.randn(current.shape, generator=generator, dtype=current.dtype)
    gradients = torch.autograd.grad(current, leaves, d)
    named = zip(("s", "weight", "bias"), gradients, strict=False)  # some layers have no bias
    return {"current": current.detach(), **dict(named)}


@pytest.fixture
def dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make NumPy's empty arrays hold what no result may keep, in fronts; kernels are compiled."""
    for dtype in (torch.float32, torch.float64):
        leaves = drawn(SHAPES[0], 1, dtype)
        results(cpu.spike_conv2d(*leaves), leaves)
    empty = cpu.np.empty

    def poisoned(shape, dtype=float):
        x = empty(shape, dtype)
        x.fill(float("nan") if x.dtype.kind == "f" else 1 << 20)
        return x

    monkeypatch.setattr(cpu.np, "empty", poisoned)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rate", [0, 0.02, 0.2, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.usefixtures("dirty_memory")
def test_the_event_driven_convolution_is_the_dense_one(shape, rate, dtype):
    leaves = drawn(shape, rate, dtype)
    found = results(cpu.spike_conv2d(*leaves), leaves)
    expected = results(reference.spike_conv2d(*leaves, shape[-1] // 2), leaves)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        scale = tensor.abs().max() + 1
        assert (found[name] - tensor).abs().max() <= SUM_BAND[dtype] * scale, name


@pytest.mark.parametrize(("size", "bias"), [(1, True), (1, False), (3, True), (3, False)])
def test_the_dense_convolution_is_torchs_with_every_gradient(size, bias):
    s, weight, b = drawn((3, 5, 4, 6, 7, size), 0.2, torch.float64)
    leaves = [s, weight, b] if bias else [s, weight]
    arguments = (s, weight, b if bias else None)
    ours = reference.spike_conv2d(*arguments, size // 2)
    theirs = F.conv2d(*arguments, padding=size // 2)
    assert torch.equal(ours, theirs)
    found = results(ours, leaves)
    for name, tensor in results(theirs, leaves).items():
        assert torch.allclose(found[name], tensor, rtol=1e-12), name


def test_whole_weights_give_exactly_the_same_sums():
    s = spikes(0.3, 4, 70, 9, 9, dtype=torch.float32).requires_grad_()
    weight = torch.randint(-9, 9, (40, 70, 3, 3)).float().requires_grad_()
    d = torch.randint(-9, 9, (4, 40, 9, 9)).float()
    ours, theirs = spike_conv2d(s, weight, None, 1), F.conv2d(s, weight, padding=1)
    assert torch.equal(ours, theirs)
    for a, e in zip(
        torch.autograd.grad(ours, (s, weight), d),
        torch.autograd.grad(theirs, (s, weight), d),
        strict=True,
    ):
        assert torch.equal(a, e)


def test_the_weights_of_silent_inputs_are_not_touched():
    s = spikes(0.5, 2, 12, 5, 5)
    s[:, 4] = 0
    weight = torch.randn(8, 12, 3, 3, dtype=torch.float64)
    weight[:, 4] = torch.nan  # a dense product would spread it: 0 * nan is nan
    assert cpu.spike_conv2d(s, weight, None).isfinite().all()
    assert reference.spike_conv2d(s, weight, None, 1).isnan().all()


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_an_image_has_the_same_current_in_any_batch_and_with_any_number_of_threads(rate):
    leaves = drawn((9, 70, 66, 8, 8, 3), rate, torch.float32)
    s, weight, bias = leaves
    s.data[1:] = spikes(0.55 - rate, 8, 70, 8, 8, dtype=torch.float32)
    whole = cpu.spike_conv2d(*leaves)
    assert torch.equal(cpu.spike_conv2d(s[:1], weight, bias), whole[:1])
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(results(cpu.spike_conv2d(*leaves), leaves))
    finally:
        torch.set_num_threads(before)
    for name in ("current", "weight", "bias"):  # that of the spikes is PyTorch's
        assert torch.equal(runs[0][name], runs[1][name]), name


# processor -> what LLVM may use of it
LESSER = {
    "haswell": "+sse4.2,+popcnt,+lzcnt,+bmi,+bmi2,+avx,+avx2,-avx512f",
    "nehalem": "+sse4.2,+popcnt,-avx,-avx2,-avx512f",
}
CURRENT_AND_GRADIENT = """
import sys, torch
from spikedriven.core.synapse import cpu
s, weight, d = torch.load("given.pt")
current = cpu.spike_conv2d(s, weight.requires_grad_(), None)
torch.save((current.detach(), *torch.autograd.grad(current, weight, d)), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other names")
@pytest.mark.parametrize("processor", LESSER)
def test_a_lesser_processor_computes_the_same_bits(processor, tmp_path):
    weight, d = torch.randn(130, 70, 3, 3), torch.randn(3, 130, 9, 8)
    torch.save((spikes(0.2, 3, 70, 9, 8, dtype=torch.float32), weight, d), tmp_path / "given.pt")
    lesser = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": LESSER[processor]}
    for name, changed in {"here": {}, "there": lesser}.items():
        command = [sys.executable, "-c", CURRENT_AND_GRADIENT, f"{name}.pt"]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **changed}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    here, there = (torch.load(tmp_path / f"{name}.pt") for name in ("here", "there"))
    for a, b in zip(here, there, strict=True):
        assert a.abs().sum() > 0
        assert torch.equal(a, b)


def test_any_layout_is_taken():
    s = spikes(0.3, 3, 5, 6, 4)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64)
    expected = cpu.spike_conv2d(s, weight, None)
    last = torch.channels_last
    assert torch.equal(
        cpu.spike_conv2d(s.to(memory_format=last), weight.to(memory_format=last), None), expected
    )
    turned = s.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(cpu.spike_conv2d(turned, weight, None), expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 4)], ids=str)
def test_what_comes_out_may_be_changed_in_place_as_what_torch_gives(size):
    s, weight, bias = drawn((2, 5, 4, *size, 3), 0.4, torch.float64)
    for ours, theirs, leaves in (
        (spike_conv2d(s, weight, bias, 1), F.conv2d(s, weight, bias, padding=1), [s, weight, bias]),
        (spike_pool(s), F.max_pool2d(s, 3, stride=2, padding=1), [s]),
    ):
        found, expected = (results(x.mul_(2).relu_(), leaves) for x in (ours, theirs))
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, rtol=1e-12), name


def test_only_gradients_that_are_asked_for_are_made(monkeypatch):
    dense, wanted = cpu._gradient_of_spikes, []
    monkeypatch.setattr(cpu, "_gradient_of_spikes", lambda *x: wanted.append(0) or dense(*x))
    for asked in range(3):
        leaves = [x.detach() for x in drawn((2, 5, 6, 4, 4, 3), 0.3, torch.float64)]
        leaves[asked].requires_grad_()
        cpu.spike_conv2d(*leaves).sum().backward()
        assert [x.grad is not None for x in leaves] == [i == asked for i in range(3)]
    assert len(wanted) == 1


@pytest.mark.parametrize(
    ("dtype", "padding", "is_event_driven"),
    [
        (torch.float32, 1, True),
        (torch.float64, 1, True),
        (torch.bfloat16, 1, False),
        (torch.float32, 0, False),
    ],
)
def test_what_is_given_decides_which_runs(monkeypatch, dtype, padding, is_event_driven):
    calls = []

    def listen(*arguments):
        calls.append(arguments)
        return reference.spike_conv2d(*arguments, padding=1)

    monkeypatch.setattr(cpu, "spike_conv2d", listen)
    s, weight = spikes(0.3, 1, 4, 5, 5, dtype=dtype), torch.randn(3, 4, 3, 3, dtype=dtype)
    spike_conv2d(s, weight, None, padding)
    assert bool(calls) is is_event_driven
    with torch.autocast("cpu", torch.bfloat16):
        spike_conv2d(s, weight, None, padding)
    assert len(calls) == is_event_driven


@pytest.mark.parametrize(
    ("channels", "dtype"), [(5, torch.float32), (3, torch.float32), (4, torch.float64)]
)
def test_spikes_that_do_not_fit_the_weights_are_refused(channels, dtype):
    s, weight = spikes(0.5, 1, channels, 5, 5, dtype=dtype), torch.randn(3, 4, 3, 3)
    with pytest.raises((RuntimeError, TypeCheckError)):  # PyTorch's; in tests the shapes' first
        spike_conv2d(s, weight, None, 1)


@pytest.mark.parametrize("pool", [spike_pool, cpu.spike_pool, reference.spike_pool])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rate", [0, 0.2, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (7, 5), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_pool_is_an_or_and_sends_the_gradient_where_torchs_does(
    pool, dtype, rate, size, layout
):
    s = spikes(rate, 2, 65, *size, dtype=dtype).to(memory_format=layout).requires_grad_()
    ours, theirs = pool(s), F.max_pool2d(s, 3, stride=2, padding=1)
    assert torch.equal(ours, theirs)
    d = torch.randint(-9, 10, ours.shape).to(dtype)  # whole: sums are the same in any order
    assert torch.equal(torch.autograd.grad(ours, s, d)[0], torch.autograd.grad(theirs, s, d)[0])


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.float32, 18), (torch.float64, 18), (torch.bfloat16, 50)]
)
def test_a_pool_on_a_cpu_keeps_a_byte_for_a_window_in_single_and_double_precision(dtype, kept):
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, id):
        spike_pool(spikes(0.5, 1, 2, 5, 5, dtype=dtype).requires_grad_())
    assert sizes == [kept]  # 2 channels of 3 x 3 windows, or of 5 x 5 pixels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [0, 1, 15, 17, 32])
def test_a_part_of_a_register_leaves_what_lies_behind_it_alone(dtype, count):
    @numba.njit
    def copy(x, y, count):
        store_first(y, 3, load_first(x, 5, count), np.int64(100))

    x, y = np.full(5 + 64, np.nan, dtype), np.full(3 + 64 + 4, 7, dtype)
    x[5 : 5 + count] = np.arange(1, count + 1)
    copy(x, y, count)
    lanes = 256 // x.itemsize
    assert list(y[3 : 3 + lanes]) == [*range(1, count + 1), *[0] * (lanes - count)]

    @numba.njit
    def begin(x, y, count):
        store_first(y, 3, load_real(x, 0), count)

    y[:] = 7
    begin(np.ones(64, dtype), y, count)
    assert list(y) == [7] * 3 + [1] * count + [7] * (len(y) - 3 - count)
