"""The convolution and the pool of spikes on a CPU: a synapse works only where there is a spike.

What `reference.py` defines, float32 or float64, for convolutions that keep the image's size. A
current is the sum of the weights of the inputs that fired, so forward each pixel adds one row of
weights per spike in its window; and the gradient of a weight is the sum of the output's gradient
over the pixels at which its input fired, so backward each channel adds one row of gradients per
spike. The sums stay in registers. At a rate of 1 this is as much work as a dense convolution, at
5 % a twentieth. The gradient of the spikes is dense by nature and is left to PyTorch.

Spikes are kept for the way back as bits, and of a pooled window only which of its pixels won. Every
sum is taken in an order that depends on shapes alone: any number of threads gives the same bits,
and no image's current depends on another image.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from spikedriven.core.kernels import njit
from spikedriven.core.memory import empty, zeros
from spikedriven.core.simd import (
    F32,
    F64,
    I32,
    bits_of,
    load_first,
    load_i32,
    load_real,
    lowest_bit,
    peek,
    positive,
    splat_i32,
    store,
    store_first,
)
from spikedriven.core.threads import CHUNKS, use_torch_threads

WORD = 64
# Events copied at a time.
COPIED = I32.lanes
# Pixels whose events are listed at a time; a panel of weights is read once for all of them.
PIXELS = 64
# Rows of weights of a panel that second-level caches hold well.
HELD = 576
# Spikes per word of 64 channels from which on they abound.
MANY = 8
# Pixels of a block of gradients; a panel of them fills a first-level cache of 32 KB.
BLOCK = 128
# Pieces into which the gradient of weights is cut at least, so that threads find work.
PIECES = 16


# ------------------------------------------------------------------ kernels
# P = B H W pixels, C channels in, D out, L lanes in a panel of output channels, k the kernel's
# side. words: [P, ceil(C / 64)] uint64, bit c of a pixel's words set where channel c fired.


@njit(parallel=True, cache=True)
def _pack(s, lanes, words):  # type: ignore[no-untyped-def]
    # s: [P, C] spikes; words is written
    pixels, channels = s.shape
    for chunk in prange(CHUNKS):
        for p in range(chunk * pixels // CHUNKS, (chunk + 1) * pixels // CHUNKS):
            for w in range(words.shape[1]):
                start, end = WORD * w, min(WORD * w + WORD, channels)
                word = np.uint64(0)
                for c in range(start, end, lanes):
                    place = p * channels + c
                    if c + lanes <= end:
                        fired = bits_of(positive(load_real(s, place)))
                    else:
                        fired = bits_of(positive(load_first(s, place, end - c)))
                    word |= fired << np.uint64(c - start)
                words[p, w] = word


@njit(parallel=True, cache=True)
def _list_events(words, begins, width, row, events):  # type: ignore[no-untyped-def]
    # begins: [P W + 1], W words to a pixel; events: x * row + c for each channel c that fired in a
    # pixel of column x, written pixel by pixel
    pixels, wide = words.shape
    for chunk in prange(CHUNKS):
        for p in range(chunk * pixels // CHUNKS, (chunk + 1) * pixels // CHUNKS):
            for w in range(wide):
                word = words[p, w]
                n = begins[p * wide + w]
                origin = p % width * row + WORD * w
                while word != 0:
                    events[n] = origin + lowest_bit(word)
                    n += 1
                    word &= word - np.uint64(1)


@njit()
def _list_window(p, grid, begins, events, row, near, n):  # type: ignore[no-untyped-def]
    # Writes to near, from n on, which rows of weights pixel p adds, and returns where they end.
    # Pixels side by side have their events side by side: a line of taps is copied in one go.
    height, width, side, wide = grid
    half = side // 2
    y, x = p // width % height, p % width
    left, right = max(x - half, 0) - x, min(x + half, width - 1) - x
    for dy in range(-half, half + 1):
        if 0 <= y + dy < height:
            line = p + dy * width
            begin = peek(begins, (line + left) * wide)
            end = peek(begins, (line + right + 1) * wide)
            tap = splat_i32(((dy + half) * side + half - x) * row)
            # Sixteen at once: what is too much is overwritten by the next.
            for e in range(begin, end, COPIED):
                store(near, n + e - begin, load_i32(events, e) + tap)
            n += end - begin
    return n


@njit()
def _cut_window(p, grid, begins, ends):  # type: ignore[no-untyped-def]
    # ends: [1 + k k W] gets where what _list_window wrote from ends[0] on ends for each word
    height, width, side, wide = grid
    half = side // 2
    y, x = p // width % height, p % width
    n = ends[0]
    part = 1
    for dy in range(-half, half + 1):
        for dx in range(-half, half + 1):
            inside = 0 <= y + dy < height and 0 <= x + dx < width
            first = (p + dy * width + dx) * wide
            for word in range(first, first + wide):
                if inside:
                    n += peek(begins, word + 1) - peek(begins, word)
                ends[part] = n
                part += 1


@njit(parallel=True, cache=True)
def _convolve(begins, events, rows, bias, grid, out):  # type: ignore[no-untyped-def]
    # rows: [D / L, k k C, L] weights; bias: [D / L, L]; grid: (H, W, k, words of a pixel)
    # out: [P, D], written
    pixels, outputs = out.shape
    panels, window, lanes = rows.shape
    side, wide = grid[2:]
    blocks = (pixels + PIXELS - 1) // PIXELS
    for chunk in prange(CHUNKS):
        near = np.empty(PIXELS * window + COPIED, np.int32)
        ends = np.zeros((PIXELS, side * side * wide + 1), np.int64)
        for block in range(chunk * blocks // CHUNKS, (chunk + 1) * blocks // CHUNKS):
            first = block * PIXELS
            count = min(PIXELS, pixels - first)
            # Where spikes abound in a large window, the weights of few channels at a time stay in
            # the first-level cache; elsewhere, moving the sums would cost more. The order stays.
            own = begins[(first + count) * wide] - begins[first * wide]
            abound = window > HELD and own >= MANY * count * wide
            parts = side * side * wide if abound else 1
            n = 0
            for i in range(count):
                ends[i, 0] = n
                n = _list_window(first + i, grid, begins, events, window // side // side, near, n)
                ends[i, 1] = n
                if parts > 1:
                    _cut_window(first + i, grid, begins, ends[i])
            for panel in range(panels):
                origin = panel * window * lanes
                start = panel * lanes
                size = min(lanes, outputs - start)
                for part in range(parts):
                    for i in range(count):
                        place = (first + i) * outputs + start
                        if part == 0:
                            total = load_real(bias, start)
                        elif size == lanes:
                            total = load_real(out, place)
                        else:
                            total = load_first(out, place, size)
                        for e in range(ends[i, part], ends[i, part + 1]):
                            total = total + load_real(rows, origin + peek(near, e) * lanes)
                        if size == lanes:
                            store(out, place, total)
                        else:
                            store_first(out, place, total, size)


# For the gradient of weights, pixels are taken in blocks of whole images, or of an image's rows
# where it is large. A block of output gradients lies in a buffer with a border of k // 2 pixels
# around each image, so that every tap of every event finds a place in it.


@njit()
def _extent(block, grid, batch, height):  # type: ignore[no-untyped-def]
    # grid: (images, rows) of a block -> its first and last image and row
    images, rows = grid
    bands = (height + rows - 1) // rows
    image, row = block // bands * images, block % bands * rows
    return image, min(image + images, batch), row, min(row + rows, height)


@njit(parallel=True, cache=True)
def _count_events(words, grid, shape, counts):  # type: ignore[no-untyped-def]
    # shape: (B, H, W); counts: [blocks, C], zeroed: the spikes of a channel in a block
    batch, height, width = shape
    for block in prange(len(counts)):
        image, last_image, row, last_row = _extent(block, grid, batch, height)
        for b in range(image, last_image):
            for p in range((b * height + row) * width, (b * height + last_row) * width):
                for w in range(words.shape[1]):
                    word = words[p, w]
                    while word != 0:
                        counts[block, WORD * w + lowest_bit(word)] += 1
                        word &= word - np.uint64(1)


@njit(parallel=True, cache=True)
def _list_blocks(words, grid, shape, half, nexts, events):  # type: ignore[no-untyped-def]
    # nexts: [blocks, C] where a channel's events begin, moved to where they end
    # events: places in the block's buffer, written
    batch, height, width = shape
    for block in prange(len(nexts)):
        image, last_image, row, last_row = _extent(block, grid, batch, height)
        for b in range(image, last_image):
            for y in range(row, last_row):
                line = (b - image) * (grid[1] + 2 * half) + y - row + half
                for x in range(width):
                    place = line * (width + 2 * half) + x + half
                    for w in range(words.shape[1]):
                        word = words[(b * height + y) * width + x, w]
                        while word != 0:
                            c = WORD * w + lowest_bit(word)
                            events[nexts[block, c]] = place
                            nexts[block, c] += 1
                            word &= word - np.uint64(1)


@njit()
def _bring_near(d, panel, extent, grid, shape, half, near, sums):  # type: ignore[no-untyped-def]
    # near: [images (rows + 2 half) (W + 2 half), L], zero at its sides, gets a panel of a block of
    # d, [P, D]; sums: [L], grows by the block's gradients
    image, last_image, row, last_row = extent
    _, height, width = shape
    lanes = near.shape[1]
    outputs = d.shape[1]
    start = panel * lanes
    size = min(lanes, outputs - start)
    for b in range(image, last_image):
        for y in range(row - half, last_row + half):
            line = (b - image) * (grid[1] + 2 * half) + y - row + half
            first = line * (width + 2 * half) + half
            if y < 0 or y >= height:
                near[first : first + width] = 0
                continue
            p = (b * height + y) * width
            for x in range(width):
                source = (p + x) * outputs + start
                if size == lanes:
                    store(near, (first + x) * lanes, load_real(d, source))
                else:
                    store(near, (first + x) * lanes, load_first(d, source, size))
            if row <= y < last_row:
                total = load_real(sums, 0)
                for x in range(width):
                    total = total + load_real(near, (first + x) * lanes)
                store(sums, 0, total)


@njit(parallel=True, cache=True)
def _weight_gradient(  # type: ignore[no-untyped-def]
    d, events, begins, ends, grid, shape, side, room, partial, sums
):
    # room: [pieces D / L, pixels of a block with its borders, L], zeroed
    # partial: [pieces, D / L, C, k k, L] and sums: [pieces, D / L, L], zeroed
    pieces, panels, channels, taps, lanes = partial.shape
    half = side // 2
    batch, height, width = shape
    wide = width + 2 * half
    blocks = len(begins)
    for item in prange(pieces * panels):
        piece, panel = item // panels, item % panels
        near = room[item]
        for block in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            extent = _extent(block, grid, batch, height)
            _bring_near(d, panel, extent, grid, shape, half, near, sums[piece, panel])
            for c in range(channels):
                begin, end = begins[block, c], ends[block, c]
                if begin == end:
                    continue
                for tap in range(taps):
                    shift = ((tap // side - half) * wide + tap % side - half) * lanes
                    row = ((item * channels + c) * taps + tap) * lanes
                    total = load_real(partial, row)
                    for e in range(begin, end):
                        total = total + load_real(near, peek(events, e) * lanes - shift)
                    store(partial, row, total)


@njit(parallel=True, cache=True)
def _pool(s, out, winners):  # type: ignore[no-untyped-def]
    # s: [B, H, W, C]; out, winners: [B, H2, W2, C], written: the spike of a 3x3 window, and which
    # of its nine places the gradient goes to
    batch, height, width, channels = s.shape
    _, high, wide, _ = out.shape
    zero, one = s.dtype.type(0), s.dtype.type(1)
    for line in prange(batch * high):
        b, y = line // high, line % high
        winner = np.empty(channels, s.dtype)  # a number of the spikes' own size: loops vectorise
        for x in range(wide):
            # In silence the window's first pixel wins, as in PyTorch; the border has none.
            silent = s.dtype.type((3 if y == 0 else 0) + (1 if x == 0 else 0))
            fired = out[b, y, x]
            won = winners[b, y, x]
            winner[:] = silent
            fired[:] = zero
            for place in range(8, -1, -1):
                v, w = 2 * y + place // 3 - 1, 2 * x + place % 3 - 1
                if 0 <= v < height and 0 <= w < width:
                    near = s[b, v, w]
                    this = s.dtype.type(place)
                    for c in range(channels):
                        winner[c] = this if near[c] > zero else winner[c]
                        fired[c] = one if near[c] > zero else fired[c]
            for c in range(channels):
                won[c] = np.uint8(winner[c])


@njit(parallel=True, cache=True)
def _pool_backward(d, winners, ds):  # type: ignore[no-untyped-def]
    # d, winners: [B, H2, W2, C]; ds: [B, H, W, C], written; a pixel lies in up to four windows
    batch, height, width, channels = ds.shape
    _, high, wide, _ = d.shape
    zero = d.dtype.type(0)
    for line in prange(batch * height):
        b, y = line // height, line % height
        for x in range(width):
            sent = ds[b, y, x]
            sent[:] = zero
            for v in range(y // 2, min((y + 1) // 2, high - 1) + 1):
                for w in range(x // 2, min((x + 1) // 2, wide - 1) + 1):
                    place = np.uint8((y - 2 * v + 1) * 3 + x - 2 * w + 1)
                    given, won = d[b, v, w], winners[b, v, w]
                    for c in range(channels):
                        sent[c] += given[c] if won[c] == place else zero


# ------------------------------------------------------------------ fronts

Array = NDArray[Any]


def _lanes(dtype: np.dtype[Any]) -> int:
    """Return how many output channels make a panel: their sums are in registers together."""
    lanes: int = (F32 if dtype == np.float32 else F64).lanes
    return lanes


def _pixels(x: Tensor) -> Array:
    """View [B, C, H, W] as [B H W, C]; copies where it is not channels-last."""
    rows: Array = x.detach().movedim(1, -1).contiguous().view(-1, x.shape[1]).numpy()
    return rows


def _image(rows: Array, shape: tuple[int, int, int]) -> Tensor:
    """Return [B H W, C] as [B, C, H, W], channels last in memory."""
    # Turned around by NumPy: of what to PyTorch is a view, autograd forbids changes in place.
    return torch.from_numpy(rows.reshape(*shape, -1).transpose(0, 3, 1, 2))


def _panels(weight: Tensor) -> Array:
    """Turn weights [D, ...] into panels [D / L, ..., L], the last one filled up with zeros."""
    # Not by .numpy(), which forbids for good to free the memory, as a divided model must (FSDP).
    matrix = np.from_dlpack(weight.detach().reshape(len(weight), -1))
    lanes = _lanes(matrix.dtype)
    panels = zeros((-(-len(matrix) // lanes), matrix.shape[1], lanes), matrix.dtype)
    for panel, start in zip(panels, range(0, len(matrix), lanes), strict=True):
        rows = matrix[start : start + lanes]
        panel[:, : len(rows)] = rows.T
    return panels


def _listed(words: Array, width: int, channels: int) -> tuple[Array, Array]:
    """Return where each word's events begin, and the events, as `_list_events` writes them."""
    begins = np.zeros(words.size + 1, np.int64)
    np.cumsum(np.bitwise_count(words).reshape(-1), out=begins[1:])
    events = np.empty(begins[-1] + COPIED, np.int32)  # the last is read in a vector
    _list_events(words, begins, width, channels, events)
    return begins, events


def _grid(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return how many images, and how many rows of each, make a block."""
    _, height, width = shape
    rows = min(height, max(1, BLOCK // width))
    return max(1, BLOCK // (height * width)), rows


def _gradient_of_weights(
    d: Array, words: Array, shape: tuple[int, int, int], weight_shape: torch.Size
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias, for d: [P, D]."""
    outputs, channels, side, _ = weight_shape
    grid = _grid(shape)
    batch, height, width = shape
    blocks = -(-batch // grid[0]) * -(-height // grid[1])
    counts = np.zeros((blocks, channels), np.int64)
    _count_events(words, grid, shape, counts)
    ends = counts.cumsum().reshape(counts.shape)
    begins = ends - counts
    events = np.empty(counts.sum(), np.int32)
    _list_blocks(words, grid, shape, side // 2, begins.copy(), events)
    lanes = _lanes(d.dtype)
    panels = -(-outputs // lanes)
    pieces = min(blocks, -(-PIECES // panels))
    partial = zeros((pieces, panels, channels, side * side, lanes), d.dtype)
    sums = np.zeros((pieces, panels, lanes), d.dtype)
    half = side // 2
    bordered = grid[0] * (grid[1] + 2 * half) * (width + 2 * half)
    room = zeros((pieces * panels, bordered, lanes), d.dtype)
    _weight_gradient(d, events, begins, ends, grid, shape, side, room, partial, sums)
    rows = partial.sum(0).transpose(0, 3, 2, 1).reshape(panels * lanes, side, side, channels)
    dw = torch.from_numpy(rows[:outputs]).movedim(-1, 1)
    return dw, torch.from_numpy(sums.sum(0).reshape(-1)[:outputs])


class _SpikeConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        use_torch_threads()
        batch, channels, height, width = s.shape
        outputs, _, side, _ = weight.shape
        spikes = _pixels(s)
        words = np.empty((len(spikes), -(-channels // WORD)), np.uint64)
        _pack(spikes, _lanes(spikes.dtype), words)
        rows = _panels(weight.movedim(1, -1))
        biases = _panels(weight.new_zeros(outputs) if bias is None else bias)[:, 0]
        current = empty((len(spikes), outputs), spikes.dtype)
        grid = height, width, side, words.shape[1]
        _convolve(*_listed(words, width, channels), rows, biases, grid, current)
        ctx.save_for_backward(torch.from_numpy(words.view(np.int64)), weight)
        ctx.shape = batch, height, width
        return _image(current, ctx.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        use_torch_threads()
        (d,) = grads
        words, weight = ctx.saved_tensors
        ds = dw = db = None
        if ctx.needs_input_grad[0]:
            ds = _gradient_of_spikes(d, weight)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            bits = words.numpy().view(np.uint64)
            dw, db = _gradient_of_weights(_pixels(d), bits, ctx.shape, weight.shape)
        return ds, dw, db if ctx.needs_input_grad[2] else None


def _gradient_of_spikes(d: Tensor, weight: Tensor) -> Tensor:
    """Return PyTorch's dense convolution with the kernel turned around, laid out as `d`."""
    turned = weight.flip(2, 3).transpose(0, 1)
    return F.conv2d(d, turned, padding=weight.shape[2] // 2)


def spike_conv2d(s: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve spikes, size kept: see `reference.spike_conv2d`. Currents lie channels-last."""
    current: Tensor = _SpikeConv2d.apply(s, weight, bias)
    return current


class _SpikePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        use_torch_threads()
        batch, channels, height, width = s.shape
        pixels = s.detach().movedim(1, -1).contiguous().numpy()
        halved = batch, (height + 1) // 2, (width + 1) // 2
        pooled = empty((*halved, channels), pixels.dtype)
        winners = np.empty(pooled.shape, np.uint8)
        _pool(pixels, pooled, winners)
        ctx.save_for_backward(torch.from_numpy(winners))
        ctx.size = height, width
        return _image(pooled, halved)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        use_torch_threads()
        (winners,) = ctx.saved_tensors
        d = grads[0].movedim(1, -1).contiguous().numpy()
        shape = len(d), *ctx.size
        ds = empty((*shape, d.shape[-1]), d.dtype)
        _pool_backward(d, winners.numpy(), ds)
        return _image(ds, shape)


def spike_pool(s: Tensor) -> Tensor:
    """Halve an image of spikes: see `reference.spike_pool`; kept is each window's winner."""
    pooled: Tensor = _SpikePool.apply(s)
    return pooled
