"""The neuron on a GPU: what `reference.py` defines, in Triton; one walk over memory for all T.

Batch norm's affine map and the addition to the membrane stream ride along. Numbers come and go in
the type of the current (float16, bfloat16, ...); membranes are float32 (float64 for float64), live
in registers, and are computed again for the backward pass, not stored. Spikes lie channels-last,
in the type of the current: what the next convolution reads. `docs/gpu.md` counts the bytes.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikedriven.core.lif.reference import Norm
from spikedriven.core.surrogate import Sigmoid
from spikedriven.core.tiles import PROGRAMS, columns_of, kind_of, real_of, rows_of

# ------------------------------------------------------------------ kernels
# x: [S, rows, cols], S = T or 1; a program owns a tile, or a run of tiles, of rows and columns at
# all steps. norm: weight, bias, mean and variance per column. Rows run in 64 bits, tiles in 32.


@triton.jit
def _moments_kernel(  # type: ignore[no-untyped-def]
    x, partial, rows, cols, per_program, ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr
):
    # partial: [programs, 2, cols], written: mean and sum of squared distances from it
    first = tl.program_id(0).to(tl.int64) * per_program
    last = tl.minimum(first + per_program, rows)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    # Distances from some value of the column: sums of squares far from zero would cancel.
    origin = tl.load(x + first * cols + c, c < cols, other=0.0).to(REAL)
    total = tl.zeros([ROWS, COLS], REAL)
    squares = tl.zeros([ROWS, COLS], REAL)
    for row in range(first, last, ROWS):
        r = row + tl.arange(0, ROWS)
        inside = (r[:, None] < last) & (c[None, :] < cols)
        value = tl.load(x + r[:, None] * cols + c[None, :], inside, other=0.0).to(REAL)
        distance = tl.where(inside, value - origin[None, :], 0.0)
        total += distance
        squares += distance * distance
    count = (last - first).to(REAL)
    shift = tl.sum(total, 0) / count
    out = partial + tl.program_id(0) * 2 * cols + c
    tl.store(out, origin + shift, c < cols)
    tl.store(out + cols, tl.sum(squares, 0) - shift * shift * count, c < cols)


@triton.jit
def _fold_moments_kernel(  # type: ignore[no-untyped-def]
    partial, mean, var, rows, cols, programs, per_program,
    ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * COLS + tl.arange(0, COLS)
    total = tl.zeros([ROWS, COLS], REAL)
    for p in range(0, programs, ROWS):
        q = p + tl.arange(0, ROWS)
        inside = (q[:, None] < programs) & (c[None, :] < cols)
        count = tl.minimum(per_program, rows - q.to(tl.int64) * per_program).to(REAL)
        part = tl.load(partial + q[:, None] * 2 * cols + c[None, :], inside, other=0.0)
        total += tl.where(inside, part * count[:, None], 0.0)
    centre = tl.sum(total, 0) / rows
    squares = tl.zeros([ROWS, COLS], REAL)
    for p in range(0, programs, ROWS):
        q = p + tl.arange(0, ROWS)
        inside = (q[:, None] < programs) & (c[None, :] < cols)
        count = tl.minimum(per_program, rows - q.to(tl.int64) * per_program).to(REAL)
        at = partial + q[:, None] * 2 * cols + c[None, :]
        away = tl.load(at, inside, other=0.0) - centre[None, :]
        spread = tl.load(at + cols, inside, other=0.0)
        squares += tl.where(inside, spread + away * away * count[:, None], 0.0)
    tl.store(mean + c, centre, c < cols)
    tl.store(var + c, tl.maximum(tl.sum(squares, 0) / rows, 0.0), c < cols)


@triton.jit
def _affine(weight, bias, mean, var, c, cols, EPS: tl.constexpr, REAL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return scale, shift, centre and spread of a tile's columns."""
    inside = c < cols
    centre = tl.load(mean + c, inside, other=0.0).to(REAL)
    spread = 1.0 / tl.sqrt(tl.load(var + c, inside, other=1.0).to(REAL) + EPS)
    scale = tl.load(weight + c, inside, other=0.0).to(REAL) * spread
    shift = tl.load(bias + c, inside, other=0.0).to(REAL) - centre * scale
    return scale[None, :], shift[None, :], centre[None, :], spread[None, :]


@triton.jit
def _fire_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, bias, mean, var, decay, u_out, s_out, rows, cols,
    EPS: tl.constexpr, THRESHOLD: tl.constexpr,
    STEPS: tl.constexpr, REPEATS: tl.constexpr, NORMS: tl.constexpr, ADDS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    # residual: [T, rows, cols] or unused; u_out (where ADDS), s_out: the same, written
    first = tl.program_id(0).to(tl.int64) * ROWS
    r = tl.arange(0, ROWS)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = ((first + r)[:, None] < rows) & (c[None, :] < cols)
    at = first * cols + (r[:, None] * cols + c[None, :])
    step = tl.cast(rows, tl.int64) * cols
    rate = tl.load(decay).to(REAL)
    if NORMS:
        scale, shift, _, _ = _affine(weight, bias, mean, var, c, cols, EPS, REAL)
    v = tl.zeros([ROWS, COLS], REAL)
    for t in tl.static_range(STEPS):
        i = tl.load(x + (0 if REPEATS else t) * step + at, inside, other=0.0).to(REAL)
        if NORMS:
            i = i * scale + shift
        if ADDS:
            i += tl.load(residual + t * step + at, inside, other=0.0).to(REAL)
            stream = i.to(u_out.dtype.element_ty)
            tl.store(u_out + t * step + at, stream, inside)
            i = stream.to(REAL)  # the neuron sees what the stream keeps, then as on the way back
        u = v + (i - v) * rate
        fires = u >= THRESHOLD
        v = tl.where(fires, 0.0, u)
        tl.store(
            s_out + t * step + at, tl.where(fires, 1.0, 0.0).to(s_out.dtype.element_ty), inside
        )


@triton.jit
def _fire_backward_kernel(  # type: ignore[no-untyped-def]
    ds, du, x, u_in, weight, bias, mean, var, mean_di, mean_dot, decay,
    out, partial, rows, cols, per_program,
    EPS: tl.constexpr, THRESHOLD: tl.constexpr, ALPHA: tl.constexpr,
    STEPS: tl.constexpr, REPEATS: tl.constexpr, NORMS: tl.constexpr, ADDS: tl.constexpr,
    SUMS: tl.constexpr, WRITES: tl.constexpr, LEARNS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    # out, where WRITES: [S, rows, cols]: gradient of the stream where ADDS, else of the raw current
    # partial, where SUMS: [programs, 3, cols]: sums of di, of di * x_hat, and of d(decay) * decay
    begin = tl.program_id(0).to(tl.int64) * per_program
    end = tl.minimum(begin + per_program, rows)
    r = tl.arange(0, ROWS)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    step = tl.cast(rows, tl.int64) * cols
    rate = tl.load(decay).to(REAL)
    zero = tl.zeros([ROWS, COLS], REAL)
    if NORMS:
        scale, shift, centre, spread = _affine(weight, bias, mean, var, c, cols, EPS, REAL)
        if WRITES and not ADDS:
            less = tl.load(mean_di + c, c < cols, other=0.0).to(REAL)[None, :]
            less_dot = tl.load(mean_dot + c, c < cols, other=0.0).to(REAL)[None, :]
    sum_di, sum_dot, sum_decay = zero, zero, zero
    for first in range(begin, end, ROWS):
        inside = ((first + r)[:, None] < end) & (c[None, :] < cols)
        at = first * cols + (r[:, None] * cols + c[None, :])
        us = ()
        v = zero
        for t in tl.static_range(STEPS):  # charge again
            if ADDS:
                i = tl.load(u_in + t * step + at, inside, other=0.0).to(REAL)
            else:
                i = tl.load(x + (0 if REPEATS else t) * step + at, inside, other=0.0).to(REAL)
                if NORMS:
                    i = i * scale + shift
            u = v + (i - v) * rate
            us += (u,)  # type: ignore[assignment]
            v = tl.where(u >= THRESHOLD, 0.0, u)
        dv = zero
        whole = zero
        for back in tl.static_range(STEPS):
            u = us[STEPS - 1 - back]
            now = (STEPS - 1 - back) * step + at
            e = tl.exp(-tl.abs(ALPHA * (u - THRESHOLD)))
            slope = ALPHA * e / ((1.0 + e) * (1.0 + e))
            d = tl.load(ds + now, inside, other=0.0).to(REAL) * slope
            d += tl.where(u >= THRESHOLD, 0.0, dv)
            dv = d * (1.0 - rate)
            if LEARNS:
                if back < STEPS - 1:
                    before = us[STEPS - 2 - back]
                    before = tl.where(before >= THRESHOLD, 0.0, before)
                else:
                    before = zero
                sum_decay += tl.where(inside, d * (u - before), 0.0)
            di = d * rate
            if ADDS:
                di += tl.load(du + now, inside, other=0.0).to(REAL)
            whole += di
            if NORMS:
                if SUMS or not ADDS:
                    raw = tl.load(x + (at if REPEATS else now), inside, other=0.0).to(REAL)
                    x_hat = (raw - centre) * spread
                if SUMS:
                    sum_di += tl.where(inside, di, 0.0)
                    sum_dot += tl.where(inside, di * x_hat, 0.0)
            if WRITES and not REPEATS:
                given = di
                if NORMS and not ADDS:
                    given = scale * (di - less - x_hat * less_dot)
                tl.store(out + now, given.to(out.dtype.element_ty), inside)
        if WRITES and REPEATS:
            given = whole
            if NORMS:
                given = scale * (whole - less - x_hat * less_dot)
            tl.store(out + at, given.to(out.dtype.element_ty), inside)
    if SUMS:
        place = partial + tl.program_id(0) * 3 * cols + c
        tl.store(place, tl.sum(sum_di, 0), c < cols)
        tl.store(place + cols, tl.sum(sum_dot, 0), c < cols)
        tl.store(place + 2 * cols, tl.sum(sum_decay, 0), c < cols)


@triton.jit
def _norm_backward_kernel(  # type: ignore[no-untyped-def]
    di, x, weight, bias, mean, var, mean_di, mean_dot, out, rows, cols,
    EPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    # di, x, out: [rows, cols], the rows of all steps
    first = tl.program_id(0).to(tl.int64) * ROWS
    r = tl.arange(0, ROWS)
    c = tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside = ((first + r)[:, None] < rows) & (c[None, :] < cols)
    at = first * cols + (r[:, None] * cols + c[None, :])
    scale, _, centre, spread = _affine(weight, bias, mean, var, c, cols, EPS, REAL)
    less = tl.load(mean_di + c, c < cols, other=0.0).to(REAL)[None, :]
    less_dot = tl.load(mean_dot + c, c < cols, other=0.0).to(REAL)[None, :]
    x_hat = (tl.load(x + at, inside, other=0.0).to(REAL) - centre) * spread
    given = tl.load(di + at, inside, other=0.0).to(REAL) - less - x_hat * less_dot
    tl.store(out + at, (scale * given).to(out.dtype.element_ty), inside)


# ------------------------------------------------------------------ operators


def _rows(x: Tensor) -> Tensor:
    """View [S, B, C, *space] as [S, rows, C]; copies where it does not lie channels-last."""
    return x.movedim(2, -1).contiguous().view(len(x), -1, x.shape[2])


def _empty(x: Tensor, steps: int) -> Tensor:
    """Return room for [steps, B, C, *space], channels last in memory."""
    _, batch, channels, *space = x.shape
    image, strides = channels, []
    for side in reversed(space):
        strides.insert(0, image)
        image *= side
    # Not a view of room that lies otherwise: FSDP warns of views that leave a layer.
    size = steps, batch, channels, *space
    return x.new_empty_strided(size, (batch * image, image, 1, *strides))


def _tile(cols: int, num_steps: int) -> tuple[int, int]:
    columns = columns_of(cols)
    return rows_of(columns, num_steps), columns


def _runs(rows: int, cols: int, tile: tuple[int, int]) -> tuple[int, int, int]:
    """Divide rows among programs that sum: how many, rows of each, and blocks of columns."""
    blocks = triton.cdiv(cols, tile[1])
    tiles = triton.cdiv(rows, tile[0])
    per_program = triton.cdiv(tiles, max(1, PROGRAMS // blocks)) * tile[0]
    return triton.cdiv(rows, per_program), per_program, blocks


@torch.library.custom_op("spikedriven::moments", mutates_args=())
def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    raw = x.movedim(2, -1).contiguous().view(-1, x.shape[2])
    (rows, cols), tile, real = raw.shape, _tile(x.shape[2], 1), real_of(x)
    programs, per_program, blocks = _runs(rows, cols, tile)
    partial = x.new_empty(programs, 2, cols, dtype=kind_of(x))
    mean, var = partial.new_empty(cols), partial.new_empty(cols)
    sizes = dict(zip(("ROWS", "COLS"), tile, strict=True), REAL=real)
    _moments_kernel[programs, blocks](raw, partial, rows, cols, per_program, **sizes)
    _fold_moments_kernel[(blocks,)](partial, mean, var, rows, cols, programs, per_program, **sizes)
    return mean, var


@_moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    kind = kind_of(x)
    return x.new_empty(x.shape[2], dtype=kind), x.new_empty(x.shape[2], dtype=kind)


@torch.library.custom_op("spikedriven::fire", mutates_args=())
def _fire(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    decay: Tensor,
    eps: float,
    num_steps: int,
    v_threshold: float,
    alpha: float,
    by_batch: bool,
) -> tuple[Tensor, Tensor]:
    del alpha, by_batch  # they are kept for the way back
    raw = _rows(x)
    _, rows, cols = raw.shape
    tile = _tile(cols, num_steps)
    s = _empty(x, num_steps)
    u = x.new_empty(0) if residual is None else _empty(residual, num_steps)
    grid = triton.cdiv(rows, tile[0]), triton.cdiv(cols, tile[1])
    _fire_kernel[grid](
        raw, raw if residual is None else _rows(residual),
        *(raw if given is None else given for given in (weight, bias, mean, var)),
        decay, u, s, rows, cols, EPS=eps, THRESHOLD=v_threshold,
        STEPS=num_steps, REPEATS=len(x) < num_steps, NORMS=weight is not None,
        ADDS=residual is not None, ROWS=tile[0], COLS=tile[1], REAL=real_of(x),
    )  # fmt: skip
    return u, s


@_fire.register_fake
def _(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    num_steps = rest[6]
    u = x.new_empty(0) if residual is None else _empty(residual, num_steps)
    return u, _empty(x, num_steps)


@torch.library.custom_op("spikedriven::fire_backward", mutates_args=())
def _fire_backward(
    ds: Tensor,
    du: Tensor | None,
    x: Tensor,
    u: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    decay: Tensor,
    eps: float,
    v_threshold: float,
    alpha: float,
    by_batch: bool,
    learns_decay: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    # gradients of x and of the stream; sums of [3, C]: those of bias and weight, d(decay) * decay
    num_steps = len(ds)
    raw, real = _rows(x), real_of(x)
    _, rows, cols = raw.shape
    adds, norms, repeats = u is not None, weight is not None, len(x) < num_steps
    tile = _tile(cols, num_steps)
    programs, per_program, blocks = _runs(rows, cols, tile)
    sums_needed = norms or learns_decay
    partial = x.new_empty(programs if sums_needed else 0, 3, cols, dtype=kind_of(x))
    mean_di = torch.zeros(2, cols, dtype=partial.dtype, device=x.device)
    norm = [raw if given is None else given for given in (weight, bias, mean, var)]
    sizes: dict[str, Any] = {"ROWS": tile[0], "COLS": tile[1], "REAL": real}
    streams = [raw if given is None else _rows(given) for given in (u, du)]

    def walk(out: Tensor, *, sums: bool, writes: bool) -> None:
        _fire_backward_kernel[programs, blocks](
            _rows(ds), streams[1], raw, streams[0], *norm, mean_di[0], mean_di[1], decay,
            out, partial, rows, cols, per_program, EPS=eps, THRESHOLD=v_threshold, ALPHA=alpha,
            STEPS=num_steps, REPEATS=repeats, NORMS=norms, ADDS=adds, SUMS=sums, WRITES=writes,
            LEARNS=learns_decay and sums, **sizes,
        )  # fmt: skip

    dx = _empty(x, len(x))
    d_stream = x.new_empty(0) if u is None else _empty(u, num_steps)
    if not norms:
        walk(dx, sums=learns_decay, writes=True)
    else:
        walk(d_stream if adds else raw, sums=True, writes=adds)
    folded = partial.sum(0)
    if norms:
        if by_batch:  # else the statistics are constants
            mean_di = folded[:2] / (len(x) * rows)
        if adds:
            every = len(x) * rows
            grid = triton.cdiv(every, tile[0]), blocks
            _norm_backward_kernel[grid](
                _rows(d_stream),
                raw,
                *norm,
                mean_di[0],
                mean_di[1],
                dx,
                every,
                cols,
                EPS=eps,
                **sizes,
            )
        else:
            walk(dx, sums=False, writes=True)
    return dx, d_stream, folded


@_fire_backward.register_fake
def _(
    ds: Tensor, du: Tensor | None, x: Tensor, u: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    del du, rest
    d_stream = x.new_empty(0) if u is None else _empty(u, len(ds))
    return _empty(x, len(x)), d_stream, x.new_empty(3, x.shape[2], dtype=kind_of(x))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, residual, weight, bias, mean, var, decay, eps, _, v_threshold, alpha, by_batch = inputs
    u = None if residual is None else output[0]
    ctx.save_for_backward(x, u, weight, bias, mean, var, decay)
    ctx.constants = eps, v_threshold, alpha, by_batch
    ctx.set_materialize_grads(False)


def _send_back(ctx: Any, du: Tensor | None, ds: Tensor | None) -> tuple[Tensor | None, ...]:
    x, u, weight, bias, mean, var, decay = ctx.saved_tensors
    if ds is None and (u is None or du is None):
        return (None,) * 12
    if ds is None:
        ds = torch.zeros_like(u).to(x.dtype)
    if u is not None and du is None:
        du = torch.zeros_like(u)
    dx, d_stream, sums = torch.ops.spikedriven.fire_backward(
        ds, None if u is None else du, x, u, weight, bias, mean, var, decay, *ctx.constants,
        ctx.needs_input_grad[6],
    )  # fmt: skip
    return (
        dx,
        None if u is None else d_stream,
        None if weight is None else sums[1].to(weight.dtype),
        None if bias is None else sums[0].to(bias.dtype),
        None,
        None,
        (sums[2].sum() / decay).to(decay.dtype) if ctx.needs_input_grad[6] else None,
        *(None,) * 5,
    )


_fire.register_autograd(_send_back, setup_context=_keep)


# ------------------------------------------------------------------ fronts


def _rate(decay: Tensor | float, x: Tensor) -> Tensor:
    if isinstance(decay, Tensor):
        return decay
    return x.new_full((), decay, dtype=kind_of(x))


def _statistics(x: Tensor, norm: Norm, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance per channel; in training those of the batch, noting them."""
    if not norm.training:
        return norm.running_mean, norm.running_var
    mean, var = torch.ops.spikedriven.moments(x.detach())
    # A static current counts once for each step: the published statistics pool T equal copies.
    pooled = x.numel() // x.shape[2] * num_steps // len(x)
    kind = norm.running_mean.dtype
    norm.running_mean.lerp_(mean.to(kind), norm.momentum)
    norm.running_var.lerp_((var * (pooled / max(pooled - 1, 1))).to(kind), norm.momentum)
    return mean, var


def norm_lif(
    x: Tensor,
    norm: Norm,
    num_steps: int,
    decay: Tensor | float,
    v_threshold: float,
    surrogate: Sigmoid,
) -> Tensor:
    """Normalise and fire: see `reference.norm_lif`. The spikes lie channels-last in memory."""
    mean, var = _statistics(x, norm, num_steps)
    _, s = torch.ops.spikedriven.fire(
        x, None, norm.weight, norm.bias, mean, var, _rate(decay, x),
        norm.eps, num_steps, v_threshold, surrogate.alpha, norm.training,
    )  # fmt: skip
    return s


def norm_add_lif(
    x: Tensor,
    norm: Norm,
    u: Tensor,
    decay: Tensor | float,
    v_threshold: float,
    surrogate: Sigmoid,
) -> tuple[Tensor, Tensor]:
    """Normalise, add and fire: see `reference.norm_add_lif`. Both lie channels-last in memory."""
    mean, var = _statistics(x, norm, len(x))
    stream, s = torch.ops.spikedriven.fire(
        x, u, norm.weight, norm.bias, mean, var, _rate(decay, x),
        norm.eps, len(x), v_threshold, surrogate.alpha, norm.training,
    )  # fmt: skip
    return stream, s


def lif(i: Tensor, decay: Tensor | float, v_threshold: float, surrogate: Sigmoid) -> Tensor:
    """Fire: see `reference.lif`. From rank 4 on, spikes lie with axis 2 (channels) fastest."""
    shaped = i if i.ndim > 2 else i.reshape(len(i), 1, -1)
    _, s = torch.ops.spikedriven.fire(
        shaped, None, None, None, None, None, _rate(decay, i),
        0.0, len(i), v_threshold, surrogate.alpha, False,
    )  # fmt: skip
    return s if i.ndim > 2 else s.reshape(i.shape)
