"""The neuron on a CPU: one pass over memory forward and two backward, for all T steps at once.

What `reference.py` defines, float32 or float64. The membranes are not kept for the backward pass
but computed again, a tile of neurons at a time in the first-level cache; the batch norm in front of
the neuron rides along in the same passes. Threads share the tiles in fixed chunks and sums are
folded in the order of the chunks, so every run gives the same bits with any number of threads.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic, overload
from torch import Tensor

from spikedriven.core.kernels import njit
from spikedriven.core.lif.reference import Norm
from spikedriven.core.memory import empty
from spikedriven.core.surrogate import Sigmoid
from spikedriven.core.threads import CHUNKS, use_torch_threads

# Neurons per tile: T tiles of float32 stay in a 32 KB first-level cache up to T = 16.
TILE = 256


# ------------------------------------------------------------------ the surrogate, vectorisable


@intrinsic
def _two_to_the(_context, n):  # type: ignore[no-untyped-def]
    """2**n for a whole n held in a float, by writing n into the exponent bits."""
    bits, bias, mantissa = (32, 127, 23) if n == numba.float32 else (64, 1023, 52)
    integer = ir.IntType(bits)

    def codegen(_cg, builder, signature, args):  # type: ignore[no-untyped-def]
        exponent = builder.add(builder.fptosi(args[0], integer), integer(bias))
        shifted = builder.shl(exponent, integer(mantissa))
        real = ir.FloatType() if signature.return_type == numba.float32 else ir.DoubleType()
        return builder.bitcast(shifted, real)

    return n(n), codegen


def _exp_of_negative(x):  # type: ignore[no-untyped-def]
    """exp(x) for -80 <= x <= 0, to the last bits of float32 or float64; loops over it vectorise."""


@overload(_exp_of_negative, inline="always")
def _exp_of_negative_typed(x):  # type: ignore[no-untyped-def]
    is_single = x == numba.float32
    real = np.float32 if is_single else np.float64
    # Taylor on |r| <= ln(2)/2; the first omitted term is below half a unit in the last place.
    factorials = np.cumprod(np.arange(1, 8 if is_single else 14, dtype=np.float64))
    c = [real(1 / f) for f in factorials]
    log2_e, ln2_high = real(1.4426950408889634), real(0.693359375)
    ln2_low = real(-2.12194440054690583e-4)
    half, one = real(0.5), real(1)
    if is_single:
        c1, c2, c3, c4, c5, c6, c7 = c

        def single(x):  # type: ignore[no-untyped-def]
            n = np.floor(x * log2_e + half)
            r = (x - n * ln2_high) - n * ln2_low
            p = c5 + r * (c6 + r * c7)
            p = one + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * p))))
            return p * _two_to_the(n)

        return single
    d1, d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12, d13 = c

    def double(x):  # type: ignore[no-untyped-def]
        n = np.floor(x * log2_e + half)
        r = (x - n * ln2_high) - n * ln2_low
        p = d9 + r * (d10 + r * (d11 + r * (d12 + r * d13)))
        p = d4 + r * (d5 + r * (d6 + r * (d7 + r * (d8 + r * p))))
        p = one + r * (d1 + r * (d2 + r * (d3 + r * p)))
        return p * _two_to_the(n)

    return double


# ------------------------------------------------------------------ kernels
# x: [S, J] raw currents, S = T or 1; J = neurons, channel fastest. Per-channel constants are
# repeated to a whole tile of L lanes, so that lane j of every tile is channel j mod C.


@njit(parallel=True, cache=True)
def _moments(x, lanes, totals):  # type: ignore[no-untyped-def]
    # totals: [CHUNKS, 2, L] float64, zeroed: sums of x and of x * x
    rows, width = x.shape
    tiles = (width + lanes - 1) // lanes
    for chunk in numba.prange(CHUNKS):
        for tile in range(chunk * tiles // CHUNKS, (chunk + 1) * tiles // CHUNKS):
            start = tile * lanes
            size = min(lanes, width - start)
            for row in range(rows):
                piece = x[row, start : start + size]
                for j in range(size):
                    value = np.float64(piece[j])
                    totals[chunk, 0, j] += value
                    totals[chunk, 1, j] += value * value


@njit(parallel=True, cache=True)
def _fire(x, scale, shift, decay, v_threshold, s):  # type: ignore[no-untyped-def]
    # s: [T, J] spikes, written
    num_steps, width = s.shape
    lanes = scale.shape[0]
    tiles = (width + lanes - 1) // lanes
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for chunk in numba.prange(CHUNKS):
        v = np.empty(lanes, x.dtype)
        for tile in range(chunk * tiles // CHUNKS, (chunk + 1) * tiles // CHUNKS):
            start = tile * lanes
            size = min(lanes, width - start)
            v[:] = zero
            for t in range(num_steps):
                current = x[t if x.shape[0] > 1 else 0, start : start + size]
                fired = s[t, start : start + size]
                for j in range(size):
                    u = v[j] + ((current[j] * scale[j] + shift[j]) - v[j]) * decay
                    fires = u >= v_threshold
                    v[j] = zero if fires else u
                    fired[j] = one if fires else zero


@njit(parallel=True, cache=True)
def _fire_backward(  # type: ignore[no-untyped-def]
    ds, x, centre, spread, scale, shift, decay, v_threshold, alpha, learns_decay, di, totals
):
    # di: [S, J] gradient of the normalised current, written (summed over T where S = 1)
    # totals: [CHUNKS, 3, L], written: sums of di, of di * (x - centre) * spread, and of d(decay)
    num_steps, width = ds.shape
    lanes = scale.shape[0]
    tiles = (width + lanes - 1) // lanes
    real = x.dtype.type
    zero, one, limit = real(0), real(1), real(80)
    keep = one - decay
    repeats = x.shape[0] == 1
    for chunk in numba.prange(CHUNKS):
        u = np.empty((num_steps, lanes), x.dtype)
        du = np.empty(lanes, x.dtype)
        dv = np.empty(lanes, x.dtype)
        sum_di = np.zeros(lanes, x.dtype)
        sum_dot = np.zeros(lanes, x.dtype)
        sum_decay = np.zeros(lanes, x.dtype)
        for tile in range(chunk * tiles // CHUNKS, (chunk + 1) * tiles // CHUNKS):
            start = tile * lanes
            size = min(lanes, width - start)
            dv[:] = zero
            for t in range(num_steps):  # charge again, keeping u of this tile only
                current = x[0 if repeats else t, start : start + size]
                for j in range(size):
                    v = zero
                    if t > 0:
                        v = zero if u[t - 1, j] >= v_threshold else u[t - 1, j]
                    u[t, j] = v + ((current[j] * scale[j] + shift[j]) - v) * decay
            for t in range(num_steps - 1, -1, -1):
                row = 0 if repeats else t
                current = x[row, start : start + size]
                grad = ds[t, start : start + size]
                out = di[row, start : start + size]
                # Short loops over few arrays: LLVM gives up vectorising over more.
                for j in range(size):
                    e = _exp_of_negative(-min(abs(alpha * (u[t, j] - v_threshold)), limit))
                    du[j] = alpha * e / ((one + e) * (one + e))
                for j in range(size):
                    carried = zero if u[t, j] >= v_threshold else dv[j]
                    du[j] = grad[j] * du[j] + carried
                    dv[j] = du[j] * keep
                if learns_decay:
                    for j in range(size):
                        v = zero
                        if t > 0:
                            v = zero if u[t - 1, j] >= v_threshold else u[t - 1, j]
                        sum_decay[j] += du[j] * ((current[j] * scale[j] + shift[j]) - v)
                for j in range(size):
                    sum_di[j] += du[j]
                    sum_dot[j] += du[j] * (current[j] - centre[j])
                if repeats and t < num_steps - 1:
                    for j in range(size):
                        out[j] += du[j] * decay
                else:
                    for j in range(size):
                        out[j] = du[j] * decay
        for j in range(lanes):
            totals[chunk, 0, j] = sum_di[j] * decay
            totals[chunk, 1, j] = sum_dot[j] * spread[j] * decay
            totals[chunk, 2, j] = sum_decay[j]


@njit(parallel=True, cache=True)
def _norm_backward(di, x, centre, spread, scale, mean_di, mean_dot):  # type: ignore[no-untyped-def]
    # di: [S, J], turned in place into the gradient of the raw current
    rows, width = x.shape
    lanes = scale.shape[0]
    tiles = (width + lanes - 1) // lanes
    for chunk in numba.prange(CHUNKS):
        for tile in range(chunk * tiles // CHUNKS, (chunk + 1) * tiles // CHUNKS):
            start = tile * lanes
            size = min(lanes, width - start)
            for row in range(rows):
                current = x[row, start : start + size]
                out = di[row, start : start + size]
                for j in range(size):
                    x_hat = (current[j] - centre[j]) * spread[j]
                    out[j] = scale[j] * (out[j] - mean_di[j] - x_hat * mean_dot[j])


# ------------------------------------------------------------------ fronts


def _lanes(num_channels: int) -> int:
    """Return the smallest multiple of the channels that fills a tile."""
    return num_channels * -(-TILE // num_channels)


def _tiled(per_channel: Tensor) -> np.ndarray[Any, Any]:
    channels = len(per_channel)
    tiled: np.ndarray[Any, Any] = np.tile(per_channel.numpy(), _lanes(channels) // channels)
    return tiled


def _folded(totals: np.ndarray[Any, Any], num_channels: int) -> Tensor:
    """Sum the chunks and the repetitions within a tile: [CHUNKS, n, L] -> [n, C], in float64."""
    summed = totals.sum(0, dtype=np.float64)
    return torch.from_numpy(summed.reshape(len(summed), -1, num_channels).sum(1))


def _rows(x: Tensor) -> np.ndarray[Any, Any]:
    """View [S, B, C, *space] as [S, J] with the channel fastest; copies where it lies otherwise."""
    if x.ndim > 3:
        x = x.movedim(2, -1)
    return x.detach().contiguous().view(len(x), -1).numpy()


def _like(rows: np.ndarray[Any, Any], x: Tensor, num_steps: int) -> Tensor:
    """Return rows [T, J] in the shape of `x`, channels last in memory."""
    if x.ndim <= 3:
        return torch.from_numpy(rows.reshape(num_steps, *x.shape[1:]))
    _, batch, channels, *space = x.shape
    # Turned around by NumPy: of what to PyTorch is a view, autograd forbids changes in place.
    lying = rows.reshape(num_steps, batch, *space, channels)
    return torch.from_numpy(np.moveaxis(lying, -1, 2))


def _statistics(x: np.ndarray[Any, Any], norm: Norm, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel; in training those of the batch, noting them."""
    if not norm.training:
        return norm.running_mean, norm.running_var
    channels = len(norm.weight)
    lanes = _lanes(channels)
    totals = np.zeros((CHUNKS, 2, lanes))
    _moments(x, lanes, totals)
    count = x.size // channels
    mean, square = _folded(totals, channels) / count
    var = (square - mean * mean).clamp_(min=0)
    # A static current counts once for each step: the published statistics pool T equal copies.
    pooled = count * num_steps // len(x)
    dtype = norm.running_mean.dtype
    unbiased = var * (pooled / max(pooled - 1, 1))
    norm.running_mean.lerp_(mean.to(dtype), norm.momentum)
    norm.running_var.lerp_(unbiased.to(dtype), norm.momentum)
    return mean.to(dtype), var.to(dtype)


class _NormLIF(torch.autograd.Function):
    """Batch norm and neuron in one: keeps the raw current and three vectors for the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        decay: Tensor,
        norm: Norm | None,
        neuron: tuple[int, float, float],
    ) -> Tensor:
        use_torch_threads()
        num_steps, v_threshold, _ = neuron
        raw = _rows(x)
        real = raw.dtype.type
        if norm is None:
            centre, spread = torch.zeros_like(bias), torch.ones_like(weight)
        else:
            centre, var = _statistics(raw, norm, num_steps)
            spread = torch.rsqrt(var + norm.eps)
        scale = weight.detach() * spread
        shift = bias.detach() - centre * scale
        spikes = empty((num_steps, raw.shape[1]), raw.dtype)
        rate = real(decay.item())
        _fire(raw, _tiled(scale), _tiled(shift), rate, real(v_threshold), spikes)
        ctx.save_for_backward(x, centre, spread, scale, shift, decay)
        ctx.neuron = neuron
        ctx.normalises = norm is not None
        ctx.by_batch = norm is not None and norm.training
        return _like(spikes, x, num_steps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        use_torch_threads()
        x, centre, spread, scale, shift, decay = ctx.saved_tensors
        _, v_threshold, alpha = ctx.neuron
        raw, ds = _rows(x), _rows(grads[0])
        real = raw.dtype.type
        channels = len(scale)
        di = empty(raw.shape, raw.dtype)
        totals = np.empty((CHUNKS, 3, _lanes(channels)), raw.dtype)
        tiles = tuple(map(_tiled, (centre, spread, scale, shift)))
        constants = real(decay.item()), real(v_threshold), real(alpha)
        _fire_backward(ds, raw, *tiles, *constants, ctx.needs_input_grad[3], di, totals)
        sum_di, sum_dot, sum_decay = _folded(totals, channels)
        mean_di, mean_dot = torch.zeros_like(centre), torch.zeros_like(centre)
        if ctx.by_batch:
            count = raw.size // channels
            mean_di, mean_dot = (sum_di / count).to(centre), (sum_dot / count).to(centre)
        if ctx.normalises:
            _norm_backward(di, raw, *tiles[:3], _tiled(mean_di), _tiled(mean_dot))
        dx = _like(di, x, len(x))
        d_decay = sum_decay.sum().to(decay)
        return dx, sum_dot.to(centre), sum_di.to(centre), d_decay, None, None


def norm_lif(
    x: Tensor,
    norm: Norm,
    num_steps: int,
    decay: Tensor | float,
    v_threshold: float,
    surrogate: Sigmoid,
) -> Tensor:
    """Normalise and fire: see `reference.norm_lif`. The spikes lie channels-last in memory."""
    rate = torch.as_tensor(decay, dtype=x.dtype)
    neuron = (num_steps, v_threshold, surrogate.alpha)
    spikes: Tensor = _NormLIF.apply(x, norm.weight, norm.bias, rate, norm, neuron)
    return spikes


def lif(i: Tensor, decay: Tensor | float, v_threshold: float, surrogate: Sigmoid) -> Tensor:
    """Fire: see `reference.lif`. From rank 4 on, spikes lie with axis 2 (channels) fastest."""
    rate = torch.as_tensor(decay, dtype=i.dtype)
    neuron = (len(i), v_threshold, surrogate.alpha)
    one, zero = i.new_ones(1), i.new_zeros(1)
    spikes: Tensor = _NormLIF.apply(i, one, zero, rate, None, neuron)
    return spikes
