"""Spikes kept as bits on a GPU: what `reference.py` keeps as bytes. The sums stay PyTorch's."""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from spikedriven.core.synapse.reference import convolution_backward, pool_backward
from spikedriven.core.tiles import bytes_of, columns_of, load_bits, rows_of, store_bits


@triton.jit
def _pack_kernel(s, bits, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    # s: [rows, cols]; bits: [rows, bytes], written
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLS
    c = first + tl.arange(0, COLS)
    inside = (row[:, None] < rows) & (c[None, :] < cols)
    fires = tl.load(s + row[:, None] * cols + c[None, :], inside, other=0.0) != 0
    store_bits(bits, fires, row, first, rows, cols, ROWS, COLS)


@triton.jit
def _unpack_kernel(bits, s, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row[:, None] < rows) & (c[None, :] < cols)
    fires = load_bits(bits, row, c, rows, cols)
    tl.store(
        s + row[:, None] * cols + c[None, :],
        tl.where(fires, 1.0, 0.0).to(s.dtype.element_ty),
        inside,
    )


def _sizes(rows: int, cols: int) -> tuple[tuple[int, int], dict[str, int]]:
    columns = columns_of(cols)
    sizes = {"ROWS": rows_of(columns, 1), "COLS": columns}
    return (triton.cdiv(rows, sizes["ROWS"]), triton.cdiv(cols, columns)), sizes


@torch.library.custom_op("spikedriven::pack", mutates_args=())
def pack(s: Tensor) -> Tensor:
    """Return the bits of spikes [B, C, H, W]: uint8 [B H W, ceil(C / 8)], low bits first."""
    rows = s.movedim(1, -1).contiguous().view(-1, s.shape[1])
    bits = s.new_empty(len(rows), bytes_of(s.shape[1]), dtype=torch.uint8)
    grid, sizes = _sizes(*rows.shape)
    _pack_kernel[grid](rows, bits, *rows.shape, **sizes)
    return bits


@pack.register_fake
def _(s: Tensor) -> Tensor:
    batch, channels, height, width = s.shape
    return s.new_empty(batch * height * width, bytes_of(channels), dtype=torch.uint8)


@torch.library.custom_op("spikedriven::unpack", mutates_args=())
def unpack(bits: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Return spikes [B, C, H, W], channels last in memory, from what `pack` returned."""
    batch, channels, height, width = shape
    s = bits.new_empty(batch, height, width, channels, dtype=dtype)
    grid, sizes = _sizes(len(bits), channels)
    _unpack_kernel[grid](bits, s, len(bits), channels, **sizes)
    return s.movedim(-1, 1)


@unpack.register_fake
def _(bits: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    batch, channels, height, width = shape
    return bits.new_empty(batch, height, width, channels, dtype=dtype).movedim(-1, 1)


class _SpikeConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(torch.ops.spikedriven.pack(s), weight)
        else:
            ctx.save_for_backward(None, weight)
        ctx.padding = padding
        ctx.like = list(s.shape), s.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.conv2d(s, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        bits, weight = ctx.saved_tensors
        shape, s_dtype = ctx.like
        if bits is None:
            s = d.new_empty(1).expand(shape)  # its values are not read
        else:
            s = torch.ops.spikedriven.unpack(bits, shape, d.dtype)
        dtypes = s_dtype, ctx.bias_dtype
        return *convolution_backward(d, s, weight, ctx.padding, dtypes, ctx.needs_input_grad), None


def spike_conv2d(s: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Convolve spikes: see `reference.spike_conv2d`; kept are their bits."""
    current: Tensor = _SpikeConv2d.apply(s, weight, bias, padding)
    return current


class _SpikePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ops.spikedriven.pack(s))
        ctx.shape = list(s.shape)
        return F.max_pool2d(s, 3, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (d,) = grads
        (bits,) = ctx.saved_tensors
        return pool_backward(d, torch.ops.spikedriven.unpack(bits, ctx.shape, d.dtype))


def spike_pool(s: Tensor) -> Tensor:
    """Halve an image of spikes: see `reference.spike_pool`; kept are their bits."""
    pooled: Tensor = _SpikePool.apply(s)
    return pooled
