"""On a GPU spikes are kept as bits, and a pool keeps its winners; the sums stay PyTorch's."""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from spikedriven.core.synapse.reference import convolution_backward
from spikedriven.core.tiles import bytes_of, columns_of, load_bits, real_of, rows_of, store_bits


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


@triton.jit
def _pool_kernel(  # type: ignore[no-untyped-def]
    s, out, winners, rows, cols, height, width, ROWS: tl.constexpr, COLS: tl.constexpr
):
    # s: [B, height, width, cols]; out, winners: [rows, cols], a row for each window
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row[:, None] < rows) & (c[None, :] < cols)
    wide, high = (width + 1) // 2, (height + 1) // 2
    x, y, image = row % wide, row // wide % high, row // wide // high
    winner = tl.full([ROWS, COLS], 9, tl.int32)  # none of the nine
    for place in tl.static_range(9):
        v, w = 2 * y + (place // 3 - 1), 2 * x + (place % 3 - 1)
        is_there = (v >= 0) & (v < height) & (w >= 0) & (w < width)
        at = ((image * height + v) * width + w) * cols
        mask = inside & is_there[:, None]
        fires = tl.load(s + at[:, None] + c[None, :], mask, other=0.0) != 0
        winner = tl.where((winner == 9) & fires, place, winner)
    at = row[:, None] * cols + c[None, :]
    tl.store(out + at, tl.where(winner < 9, 1.0, 0.0).to(out.dtype.element_ty), inside)
    # In silence the window's first pixel wins, as in PyTorch; the border has none.
    first = tl.where(y == 0, 3, 0) + tl.where(x == 0, 1, 0)
    winner = tl.where(winner < 9, winner, first[:, None].to(tl.int32))
    tl.store(winners + at, winner.to(tl.uint8), inside)


@triton.jit
def _pool_backward_kernel(  # type: ignore[no-untyped-def]
    d, winners, ds, rows, cols, height, width,
    ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    # ds: [rows, cols], a row for each pixel, which lies in up to four windows
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = (row[:, None] < rows) & (c[None, :] < cols)
    wide, high = (width + 1) // 2, (height + 1) // 2
    x, y, image = row % width, row // width % height, row // width // height
    total = tl.zeros([ROWS, COLS], REAL)
    for corner in tl.static_range(4):
        v, w = (y + corner // 2) // 2, (x + corner % 2) // 2
        # an even line lies in the middle of one window, an odd one at the edges of two
        is_there = (v < high) & (w < wide)
        is_there &= (corner // 2 == 0) | (y % 2 == 1)
        is_there &= (corner % 2 == 0) | (x % 2 == 1)
        place = (y - 2 * v + 1) * 3 + x - 2 * w + 1
        at = ((image * high + v) * wide + w) * cols
        mask = inside & is_there[:, None]
        won = tl.load(winners + at[:, None] + c[None, :], mask, other=9) == place[:, None]
        given = tl.load(d + at[:, None] + c[None, :], mask, other=0.0).to(REAL)
        total += tl.where(won, given, 0.0)
    tl.store(ds + row[:, None] * cols + c[None, :], total.to(ds.dtype.element_ty), inside)


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


def _windows(s: Tensor) -> Tensor:
    """Return room for the pooled spikes [B, C, H2, W2], channels last in memory."""
    batch, channels, height, width = s.shape
    room = s.new_empty(batch, (height + 1) // 2, (width + 1) // 2, channels)
    return room.movedim(-1, 1)


@torch.library.custom_op("spikedriven::pool", mutates_args=())
def _pool(s: Tensor) -> tuple[Tensor, Tensor]:
    out = _windows(s)
    batch, channels, high, wide = out.shape
    rows = batch * high * wide
    winners = s.new_empty(rows, channels, dtype=torch.uint8)
    grid, sizes = _sizes(rows, channels)
    pixels = s.movedim(1, -1).contiguous()
    _pool_kernel[grid](pixels, out, winners, rows, channels, *s.shape[2:], **sizes)
    return out, winners


@_pool.register_fake
def _(s: Tensor) -> tuple[Tensor, Tensor]:
    out = _windows(s)
    batch, channels, high, wide = out.shape
    return out, s.new_empty(batch * high * wide, channels, dtype=torch.uint8)


@torch.library.custom_op("spikedriven::pool_backward", mutates_args=())
def _pool_backward(d: Tensor, winners: Tensor, shape: list[int]) -> Tensor:
    batch, channels, height, width = shape
    ds = d.new_empty(batch, height, width, channels)
    grid, sizes = _sizes(batch * height * width, channels)
    _pool_backward_kernel[grid](
        d.movedim(1, -1).contiguous(), winners, ds, batch * height * width, channels,
        height, width, REAL=real_of(d), **sizes,
    )  # fmt: skip
    return ds.movedim(-1, 1)


@_pool_backward.register_fake
def _(d: Tensor, winners: Tensor, shape: list[int]) -> Tensor:
    del winners
    batch, channels, height, width = shape
    return d.new_empty(batch, height, width, channels).movedim(-1, 1)


def _keep_winners(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.shape = list(inputs[0].shape)


def _send_to_winners(ctx: Any, d: Tensor, _winners: Tensor) -> Tensor:
    ds: Tensor = torch.ops.spikedriven.pool_backward(d, *ctx.saved_tensors, ctx.shape)
    return ds


_pool.register_autograd(_send_to_winners, setup_context=_keep_winners)


def spike_pool(s: Tensor) -> Tensor:
    """Halve an image of spikes: see `reference.spike_pool`; kept is each window's winner."""
    pooled: Tensor = torch.ops.spikedriven.pool(s)[0]
    return pooled
