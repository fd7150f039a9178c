"""Pooling of packed spikes (64 channels per OR) and of membranes (16 per compare)."""

# mypy: disable-error-code="no-untyped-def"

from functools import lru_cache
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from spikedriven.core.kernels import called_by_kernels, inlined, kernel, parallel_kernel
from spikedriven.core.simd import (
    at_least,
    load_i32,
    peek,
    poke,
    select,
    splat_i32,
    store,
)
from spikedriven.engine.bits import GROUP, WORD, Words
from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.schedule import ROW, flat

Array = NDArray[Any]


def pool_spikes(words: Words, height: int, width: int, stride: int, out: Words) -> None:
    """OR over 3x3 pixels.

    Args:
        words: uint64 [B * height * width, 4, P].
        height: Pixels along y.
        width: Pixels along x.
        stride: 2 to halve the image (both sides even), 1 to dilate it.
        out: Filled, uint64 [B * (height / stride) * (width / stride), 4, P].
    """
    size = words[0].size
    lines = _lines(len(out), height, width, stride, size)
    _pool(lines, words.reshape(-1), width, stride, size, width * size, out.reshape(-1))


@lru_cache(maxsize=64)
def _lines(sites: int, height: int, width: int, stride: int, size: int) -> NDArray[np.int64]:
    """Return per line of the result: pixel, place, middle source line, line above?, below?"""
    wide, high = width // stride, height // stride
    line = np.arange(sites // wide)
    image, y = line // high, line % high * stride
    pixel = line * wide
    source = (image * height + y) * width * size
    inside = (y > 0).astype(np.int64), (y < height - 1).astype(np.int64)
    return flat([pixel, pixel * size, source, *inside])


@kernel
def _pool(lines, words, width, stride, size, row, out):
    # On one thread, as the sums over tokens: see image.cpu._note_lines.
    step = size << (stride - 1)
    for line in range(lines.size >> ROW):
        plan = line << ROW
        to, middle = peek(lines, plan + 1), peek(lines, plan + 2)
        above, below = peek(lines, plan + 3), peek(lines, plan + 4)
        x = 0
        while x < width:
            target = out[to : to + size]
            for q in range(size):
                target[q] = 0
            at = middle - row if above else middle
            for _ in range(1 + above + below):
                here = at - size if x > 0 else at
                for _ in range(1 + (x > 0) + (x < width - 1)):
                    source = words[here : here + size]
                    for q in range(size):
                        target[q] |= source[q]
                    here += size
                at += row
            x += stride
            to += size
            middle += step


def pool_membranes(
    currents: Array, height: int, width: int, stream: Array, theta: Array,
    leak: Array | None, v: Array | None, resume: bool, words: Words, steps: int,
) -> None:  # fmt: skip
    """Take the maximum over 3x3 pixels at every second one: the stream begins; fire on it.

    Args:
        currents: int32 [panels, B * height * width, 4, 64].
        height: Pixels along y, even.
        width: Pixels along x, even.
        stream: Filled, int32 [panels, B * height / 2 * width / 2, 4, 64].
        theta: int32 [64 panels].
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        v: Membranes, int32 [n, 64 panels], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        words: Filled, uint64 [n, 4, panels].
        steps: How many of the four steps are real; the others stay silent.
    """
    panels, sites = stream.shape[:2]
    lines = _lines_of_panels(panels, sites, height, width)
    membranes = None if v is None else v.reshape(-1)
    _pool_membranes(
        lines, currents.reshape(-1), width, width * GROUP * WORD, panels, stream.reshape(-1),
        theta, leak, membranes, resume, words.reshape(-1), steps,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _lines_of_panels(panels: int, sites: int, height: int, width: int) -> NDArray[np.int64]:
    """Return per panel and line: channel; places of value, source, word, membrane; line above?"""
    lines = sites // (width // 2)
    panel, line = np.arange(panels).repeat(lines), np.tile(np.arange(lines), panels)
    pixel, y = line * (width // 2), line % (height // 2) * 2
    source = (panel * sites * 4 + line // (height // 2) * height * width + y * width) * GROUP * WORD
    return flat(
        [
            panel * WORD,
            (panel * sites + pixel) * GROUP * WORD,
            source,
            pixel * GROUP * panels + panel,
            (pixel * panels + panel) * WORD,
            (y > 0).astype(np.int64),
        ]
    )


@inlined
def _larger(x, y):
    return select(at_least(x, y), x, y)


@inlined
def _largest_of_line(currents, at, left):
    # A pixel is 256 numbers away: four steps of 64 channels. Sides are even, and every second
    # pixel is asked for, so that there is always one to the right, and a line below.
    most = _larger(load_i32(currents, at), load_i32(currents, at + 256))
    if left:
        most = _larger(most, load_i32(currents, at - 256))
    return most


@parallel_kernel
def _pool_membranes(
    lines, currents, width, row, panels, stream, theta, leak, v, resume, words, steps
):
    for line in prange(lines.size >> ROW):
        _pool_line(
            np.int64(line) << ROW, lines, currents, width, row, panels, stream, theta, leak, v,
            resume, words, steps,
        )  # fmt: skip


@called_by_kernels
def _pool_line(
    plan, lines, currents, width, row, panels, stream, theta, leak, v, resume, words, steps
):
    channels = panels << 6
    first, to, middle = peek(lines, plan), peek(lines, plan + 1), peek(lines, plan + 2)
    word, site = peek(lines, plan + 3), peek(lines, plan + 4)
    above = peek(lines, plan + 5)
    x = 0
    while x < width:
        left = x > 0
        w0 = w1 = w2 = w3 = np.uint64(0)
        for c in range(0, 64, 16):
            u = splat_i32(0)
            if v is not None and resume:
                u = load_i32(v, site + c)
            step = c
            for t in range(4):
                if t < steps:
                    at = middle + step
                    most = _largest_of_line(currents, at, left)
                    most = _larger(most, _largest_of_line(currents, at + row, left))
                    if above:
                        most = _larger(most, _largest_of_line(currents, at - row, left))
                    store(stream, to + step, most)
                    u, bits = fire_16(most, u, load_i32(theta, first + c), leak)
                    bits = bits << np.uint64(c)
                    w0 |= bits if t == 0 else np.uint64(0)
                    w1 |= bits if t == 1 else np.uint64(0)
                    w2 |= bits if t == 2 else np.uint64(0)
                    w3 |= bits if t == 3 else np.uint64(0)
                    step += 64
            if v is not None:
                store(v, site + c, u)
        at = word
        for bits in (w0, w1, w2, w3):
            poke(words, at, bits)
            at += panels
        x += 2
        to += 256
        site += channels
        word += panels << 2
        middle += 512


def dilate_channels(words: Words, first: Words, last: Words) -> None:
    """Dilate by one channel to either side within its head, in place.

    Args:
        words: uint64 [m, P].
        first: uint64 [P], the bits of the heads' first channels.
        last: uint64 [P], the bits of the heads' last channels.
    """
    _dilate_channels(words.reshape(-1), first, last)


@kernel
def _dilate_channels(words, first, last):
    one, top = np.uint64(1), np.uint64(63)
    panels = first.size
    for begin in range(0, words.size, panels):
        row = words[begin : begin + panels]
        before = np.uint64(0)  # the word below, undilated
        for p in range(panels):
            word = row[p]
            above = np.uint64(0)
            if p + 1 < panels:
                above = row[p + 1] & ~first[p + 1]
            up = (word & ~last[p]) << one
            if p > 0:
                up |= (before & ~last[p - 1]) >> top
            down = ((word & ~first[p]) >> one) | (above << top)
            row[p] = word | up | down
            before = word


def dilate_tokens(words: Words, tokens: int, out: Words) -> None:
    """OR over each token and its two neighbours in raster order, image by image.

    Args:
        words: uint64 [B * tokens, 4, P].
        tokens: Tokens of an image.
        out: Filled, of the same shape.
    """
    _dilate_tokens(words.reshape(-1), tokens, words[0].size, out.reshape(-1))


@kernel
def _dilate_tokens(words, tokens, size, out):
    place = 0
    for at in range(0, words.size, size):
        own, target = words[at : at + size], out[at : at + size]
        for q in range(size):
            target[q] = own[q]
        if place > 0:
            before = words[at - size : at]
            for q in range(size):
                target[q] |= before[q]
        place += 1
        if place < tokens:
            after = words[at + size : at + size + size]
            for q in range(size):
                target[q] |= after[q]
        else:
            place = 0
