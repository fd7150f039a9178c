"""Attention's two walks on a GPU: what `reference.py` defines, in Triton; kept are bits.

Spikes lie channels-last, [T B, N, C] with N = H W; a program owns some channels of one image at one
step and walks over its tokens. Each spike is read once forward; backward reads its bit.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikedriven.core.tiles import (
    bytes_of,
    columns_of,
    kind_of,
    load_bits,
    real_of,
    rows_of,
    store_bits,
)

# ------------------------------------------------------------------ kernels
# q, k, v, d: [images, tokens, cols]; gate and counts: [images, cols]; bits: [images tokens, bytes]


@triton.jit
def _agreement_kernel(  # type: ignore[no-untyped-def]
    k, v, counts, k_bits, v_bits, tokens, cols,
    ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    begin = image * tokens
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    total = tl.zeros([ROWS, COLS], REAL)
    for first in range(0, tokens, ROWS):
        r = first + tl.arange(0, ROWS)
        inside = (r[:, None] < tokens) & (c[None, :] < cols)
        at = begin * cols + (r[:, None] * cols + c[None, :])
        k_fires = tl.load(k + at, inside, other=0.0) != 0
        v_fires = tl.load(v + at, inside, other=0.0) != 0
        total += (k_fires & v_fires).to(REAL)
        row, last = begin + r, begin + tokens
        store_bits(k_bits, k_fires, row, tl.program_id(1) * COLS, last, cols, ROWS, COLS)
        store_bits(v_bits, v_fires, row, tl.program_id(1) * COLS, last, cols, ROWS, COLS)
    tl.store(counts + image * cols + c, tl.sum(total, 0), c < cols)


@triton.jit
def _agreement_backward_kernel(  # type: ignore[no-untyped-def]
    d, k_bits, v_bits, dk, dv, tokens, cols, ROWS: tl.constexpr, COLS: tl.constexpr
):
    # d: [images, cols], gradient of the counts
    image = tl.program_id(0).to(tl.int64)
    begin = image * tokens
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    given = tl.load(d + image * cols + c, c < cols, other=0.0)[None, :]
    for first in range(0, tokens, ROWS):
        r = first + tl.arange(0, ROWS)
        inside = (r[:, None] < tokens) & (c[None, :] < cols)
        at = begin * cols + (r[:, None] * cols + c[None, :])
        k_fires = load_bits(k_bits, begin + r, c, begin + tokens, cols)
        v_fires = load_bits(v_bits, begin + r, c, begin + tokens, cols)
        tl.store(dk + at, tl.where(v_fires, given, 0.0).to(dk.dtype.element_ty), inside)
        tl.store(dv + at, tl.where(k_fires, given, 0.0).to(dv.dtype.element_ty), inside)


@triton.jit
def _mask_kernel(  # type: ignore[no-untyped-def]
    q, gate, out, q_bits, tokens, cols, ROWS: tl.constexpr, COLS: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    begin = image * tokens
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    opens = (tl.load(gate + image * cols + c, c < cols, other=0.0) != 0)[None, :]
    for first in range(0, tokens, ROWS):
        r = first + tl.arange(0, ROWS)
        inside = (r[:, None] < tokens) & (c[None, :] < cols)
        at = begin * cols + (r[:, None] * cols + c[None, :])
        fires = tl.load(q + at, inside, other=0.0) != 0
        tl.store(out + at, tl.where(fires & opens, 1.0, 0.0).to(out.dtype.element_ty), inside)
        first_column = tl.program_id(1) * COLS
        store_bits(q_bits, fires, begin + r, first_column, begin + tokens, cols, ROWS, COLS)


@triton.jit
def _mask_backward_kernel(  # type: ignore[no-untyped-def]
    d, q_bits, gate, dq, d_gate, tokens, cols,
    ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    begin = image * tokens
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    opens = (tl.load(gate + image * cols + c, c < cols, other=0.0) != 0)[None, :]
    total = tl.zeros([ROWS, COLS], REAL)
    for first in range(0, tokens, ROWS):
        r = first + tl.arange(0, ROWS)
        inside = (r[:, None] < tokens) & (c[None, :] < cols)
        at = begin * cols + (r[:, None] * cols + c[None, :])
        given = tl.load(d + at, inside, other=0.0)
        tl.store(dq + at, tl.where(opens, given, 0.0), inside)
        fires = load_bits(q_bits, begin + r, c, begin + tokens, cols)
        total += tl.where(fires, given.to(REAL), 0.0)
    tl.store(d_gate + image * cols + c, tl.sum(total, 0), c < cols)


# ------------------------------------------------------------------ operators


def _tokens(x: Tensor) -> Tensor:
    """View [T, B, C, H, W] as [T B, N, C]; copies where it does not lie channels-last."""
    return x.movedim(2, -1).contiguous().view(-1, x.shape[3] * x.shape[4], x.shape[2])


def _empty(like: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """Return room for [T, B, C, H, W], channels last in memory."""
    T, B, C, H, W = shape
    return like.new_empty(T, B, H, W, C, dtype=dtype).movedim(-1, 2)


def _bits(x: Tensor) -> Tensor:
    T, B, C, H, W = x.shape
    return x.new_empty(T * B * H * W, bytes_of(C), dtype=torch.uint8)


def _grid(images: int, cols: int) -> tuple[tuple[int, int], dict[str, int]]:
    columns = min(64, columns_of(cols))
    grid = images, triton.cdiv(cols, columns)
    return grid, {"ROWS": rows_of(columns, 1), "COLS": columns}


@torch.library.custom_op("spikedriven::agreement", mutates_args=())
def _agreement(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = _tokens(k), _tokens(v)
    images, tokens, cols = keys.shape
    counts = k.new_empty(*k.shape[:3], dtype=kind_of(k))
    k_bits, v_bits = _bits(k), _bits(v)
    grid, sizes = _grid(images, cols)
    _agreement_kernel[grid](
        keys, values, counts, k_bits, v_bits, tokens, cols, REAL=real_of(k), **sizes
    )
    return counts, k_bits, v_bits


@_agreement.register_fake
def _(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return k.new_empty(*k.shape[:3], dtype=kind_of(k)), _bits(k), _bits(v)


@torch.library.custom_op("spikedriven::agreement_backward", mutates_args=())
def _agreement_backward(
    d: Tensor, k_bits: Tensor, v_bits: Tensor, shape: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    dk, dv = _empty(d, shape, dtype), _empty(d, shape, dtype)
    T, B, C, H, W = shape
    grid, sizes = _grid(T * B, C)
    _agreement_backward_kernel[grid](d.contiguous(), k_bits, v_bits, dk, dv, H * W, C, **sizes)
    return dk, dv


@_agreement_backward.register_fake
def _(
    d: Tensor, k_bits: Tensor, v_bits: Tensor, shape: list[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    del k_bits, v_bits
    return _empty(d, shape, dtype), _empty(d, shape, dtype)


@torch.library.custom_op("spikedriven::mask", mutates_args=())
def _mask(q: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    out, q_bits = _empty(q, list(q.shape), q.dtype), _bits(q)
    queries = _tokens(q)
    images, tokens, cols = queries.shape
    grid, sizes = _grid(images, cols)
    _mask_kernel[grid](queries, gate.contiguous(), out, q_bits, tokens, cols, **sizes)
    return out, q_bits


@_mask.register_fake
def _(q: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    del gate
    return _empty(q, list(q.shape), q.dtype), _bits(q)


@torch.library.custom_op("spikedriven::mask_backward", mutates_args=())
def _mask_backward(d: Tensor, q_bits: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    dq, d_gate = _empty(d, list(d.shape), d.dtype), torch.empty_like(gate)
    given = _tokens(d)
    images, tokens, cols = given.shape
    grid, sizes = _grid(images, cols)
    _mask_backward_kernel[grid](
        given, q_bits, gate.contiguous(), dq, d_gate, tokens, cols, REAL=real_of(d), **sizes
    )
    return dq, d_gate


@_mask_backward.register_fake
def _(d: Tensor, q_bits: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    del q_bits
    return _empty(d, list(d.shape), d.dtype), torch.empty_like(gate)


def _keep_keys(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.like = list(inputs[0].shape), inputs[0].dtype


def _send_to_keys(ctx: Any, d: Tensor, *_bits: Tensor) -> tuple[Tensor, Tensor]:
    dk, dv = torch.ops.spikedriven.agreement_backward(d, *ctx.saved_tensors, *ctx.like)
    return dk, dv


def _keep_query(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], inputs[1])


def _send_to_query(ctx: Any, d: Tensor, *_bits: Tensor) -> tuple[Tensor, Tensor]:
    dq, d_gate = torch.ops.spikedriven.mask_backward(d, *ctx.saved_tensors)
    return dq, d_gate


_agreement.register_autograd(_send_to_keys, setup_context=_keep_keys)
_mask.register_autograd(_send_to_query, setup_context=_keep_query)


# ------------------------------------------------------------------ fronts


def agreement(k: Tensor, v: Tensor) -> Tensor:
    """Count agreements: see `reference.agreement`; in float32 where the spikes are narrower."""
    counts: Tensor = torch.ops.spikedriven.agreement(k, v)[0]
    return counts


def mask(q: Tensor, gate: Tensor) -> Tensor:
    """Mask the query: see `reference.mask`; in the dtype of `q`, channels last in memory."""
    masked: Tensor = torch.ops.spikedriven.mask(q, gate)[0]
    return masked
