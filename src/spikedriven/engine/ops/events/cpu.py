"""Lists of events from packed spikes.

For a pixel, or a pixel and its neighbours, the rows of weights to add, grouped by the pattern of
the four steps in which the channel fired. A channel's row is then loaded once, however often it
fired. The groups follow one another in a Gray code, so that between two of them a single step
begins or ends: that is what lets `synapse` keep one running sum instead of fifteen.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange
from numba.extending import intrinsic
from numpy.typing import NDArray

from spikedriven.engine.bits import WORD, Words
from spikedriven.engine.ops.events.reference import GRAY
from spikedriven.engine.simd import (
    I16,
    bits_of,
    compress,
    count_bits,
    equal,
    has_compress,
    load_i16,
    lowest_bit,
    mask_32,
    peek,
    select,
    splat_i16,
    store,
)

SLACK = 64
"""Entries past a list's end that vector stores may touch."""

_GRAY = np.array(GRAY, np.int64)
_PLACE = np.zeros(16, np.int64)  # pattern -> place in the Gray code
_PLACE[_GRAY] = np.arange(len(GRAY))
_COMPRESS = has_compress()


class Lists(NamedTuple):
    """Events of some pixels."""

    events: NDArray[np.uint16]
    """[pixels, capacity]: rows of weights; a group of odd length is filled up with the row of
    zeros, the one behind the last."""
    borders: NDArray[np.int32]
    """[pixels, 16]: group g of the Gray code is events[borders[g] : borders[g + 1]]."""
    counts: NDArray[np.int32]
    """[pixels, 4]: spikes in sight of the pixel at each step."""


def capacity(rows: int) -> int:
    """Return how many entries the list of one pixel may need: all rows, each group made even."""
    return rows + len(GRAY) + SLACK


@intrinsic
def _lanes(_typing):
    """Return 0, 1, ... 31."""
    return I16(), lambda _context, _builder, _signature, _args: ir.Constant(I16.ir, list(range(32)))


@njit(forceinline=True)
def _collect_vector(b0, b1, b2, b3, row, ids, codes, m):
    # Append the rows of a word's active channels, and their patterns, 32 channels at a time.
    for half in range(2):
        active = (b0 | b1 | b2 | b3) & np.uint64(0xFFFFFFFF)
        if active:
            zero = splat_i16(0)
            code = (
                select(mask_32(b0), splat_i16(1), zero)
                + select(mask_32(b1), splat_i16(2), zero)
                + select(mask_32(b2), splat_i16(4), zero)
                + select(mask_32(b3), splat_i16(8), zero)
            )
            mask = mask_32(active)
            store(ids, m, compress(_lanes() + splat_i16(row + 32 * half), mask))
            store(codes, m, compress(code, mask))
            m += count_bits(active)
        b0, b1 = b0 >> np.uint64(32), b1 >> np.uint64(32)
        b2, b3 = b2 >> np.uint64(32), b3 >> np.uint64(32)
    return m


@njit(forceinline=True)
def _sort_vector(ids, codes, m, filler, events, at, borders, i):
    store(codes, m, splat_i16(0))
    begin = at
    borders[i, 0] = 0
    for place in range(15):
        first = at
        wanted = splat_i16(_GRAY[place])
        j = 0
        while j < m:
            mask = equal(load_i16(codes, j), wanted)
            store(events, at, compress(load_i16(ids, j), mask))
            at += count_bits(bits_of(mask))
            j += 32
        if filler >= 0 and (at - first) & 1:
            events[at] = filler
            at += 1
        borders[i, place + 1] = at - begin


@njit(forceinline=True)
def _collect_scalar(b0, b1, b2, b3, row, ids, codes, m):
    active = b0 | b1 | b2 | b3
    one = np.uint64(1)
    while active:
        c = lowest_bit(active)
        active &= active - one
        at = np.uint64(c)
        code = ((b0 >> at) & one) | (((b1 >> at) & one) << one)
        code |= (((b2 >> at) & one) | (((b3 >> at) & one) << one)) << np.uint64(2)
        ids[m] = row + c
        codes[m] = code
        m += 1
    return m


@njit(forceinline=True)
def _sort_scalar(ids, codes, m, filler, events, at, borders, i):
    cursor = np.zeros(16, np.int64)
    for j in range(m):
        cursor[_PLACE[codes[j]]] += 1
    begin = at
    borders[i, 0] = 0
    for place in range(15):
        number = cursor[place]
        cursor[place] = at
        at += number
        if filler >= 0 and number & 1:
            events[at] = filler
            at += 1
        borders[i, place + 1] = at - begin
    for j in range(m):
        place = _PLACE[codes[j]]
        events[cursor[place]] = ids[j]
        cursor[place] += 1


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def list_pixels(words, lo, hi, filler, events, borders, counts):
    """List the events of pixels lo ... hi - 1, each for itself.

    Args:
        words: Packed spikes, uint64 [n, 4, P].
        lo: First pixel.
        hi: One past the last.
        filler: What fills a group of odd length up: the row of zeros, the one behind the last. -1
            leaves it odd.
        events: Filled: uint16 [hi - lo, capacity], channels that fired at some step, by groups.
        borders: Filled: int32 [hi - lo, 16]; group g of the Gray code is borders[g] : borders[g+1].
        counts: Filled: int32 [hi - lo, 4], spikes at each step.
    """
    panels = words.shape[2]
    room = events.shape[1]
    flat = events.reshape(-1)
    block = 16
    for task in prange((hi - lo + block - 1) // block):
        ids = np.empty(room, np.uint16)
        codes = np.empty(room, np.uint16)
        for i in range(task * block, min((task + 1) * block, hi - lo)):
            m = 0
            n0 = n1 = n2 = n3 = 0
            for p in range(panels):
                b0, b1 = words[lo + i, 0, p], words[lo + i, 1, p]
                b2, b3 = words[lo + i, 2, p], words[lo + i, 3, p]
                if b0 | b1 | b2 | b3:
                    n0 += count_bits(b0)
                    n1 += count_bits(b1)
                    n2 += count_bits(b2)
                    n3 += count_bits(b3)
                    if _COMPRESS:
                        m = _collect_vector(b0, b1, b2, b3, p * WORD, ids, codes, m)
                    else:
                        m = _collect_scalar(b0, b1, b2, b3, p * WORD, ids, codes, m)
            counts[i, 0], counts[i, 1], counts[i, 2], counts[i, 3] = n0, n1, n2, n3
            if _COMPRESS:
                _sort_vector(ids, codes, m, filler, flat, i * room, borders, i)
            else:
                _sort_scalar(ids, codes, m, filler, flat, i * room, borders, i)


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def merge_neighbours(
    near, near_borders, near_counts, height, width, inputs, lo, hi, events, borders, counts
):
    """Merge the lists of each pixel's 3x3 neighbourhood, for a convolution with a silent border.

    Args:
        near: Lists of single pixels, uint16 [B * height * width, capacity], odd groups left odd.
        near_borders: Their groups.
        near_counts: Their numbers.
        height: Pixels along y.
        width: Pixels along x.
        inputs: Rows of weights for each of the nine taps.
        lo: First pixel.
        hi: One past the last.
        events: Filled: uint16 [hi - lo, capacity], rows of weights by groups of even length; the
            row of zeros, behind the last, fills up.
        borders: Filled: int32 [hi - lo, 16].
        counts: Filled: int32 [hi - lo, 4], spikes in sight of the pixel at each step.
    """
    near_room, room = near.shape[1], events.shape[1]
    flat_near, flat = near.reshape(-1), events.reshape(-1)
    flat_borders = near_borders.reshape(-1)
    block = 16
    for task in prange((hi - lo + block - 1) // block):
        sources = np.empty(9, np.int64)
        rows = np.empty(9, np.int64)
        starts = np.empty(9, np.int64)
        for i in range(task * block, min((task + 1) * block, hi - lo)):
            pixel = lo + i
            y, x = (pixel // width) % height, pixel % width
            taps = 0
            n0 = n1 = n2 = n3 = 0
            row = 0
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        source = pixel + dy * width + dx
                        sources[taps], rows[taps] = source, row
                        starts[taps] = source * near_room
                        taps += 1
                        n0 += near_counts[source, 0]
                        n1 += near_counts[source, 1]
                        n2 += near_counts[source, 2]
                        n3 += near_counts[source, 3]
                    row += inputs
            counts[i, 0], counts[i, 1], counts[i, 2], counts[i, 3] = n0, n1, n2, n3
            begin = at = i * room
            borders[i, 0] = 0
            for place in range(15):
                first = at
                for tap in range(taps):
                    source = peek(sources, tap)
                    j = peek(starts, tap)
                    end = source * near_room + peek(flat_borders, source * 16 + place + 1)
                    starts[tap] = end
                    shift = splat_i16(peek(rows, tap))
                    store(flat, at, load_i16(flat_near, j) + shift)  # rarely more than this
                    number = end - j
                    while number > 32:
                        at += 32
                        j += 32
                        number -= 32
                        store(flat, at, load_i16(flat_near, j) + shift)
                    at += number
                if (at - first) & 1:
                    flat[at] = row
                    at += 1
                borders[i, place + 1] = at - begin


def list_events(
    words: Words, height: int, width: int, kernel: int, lo: int, hi: int, lists: Lists, near: Lists
) -> None:
    """List the events of pixels lo ... hi - 1.

    Args:
        words: Packed spikes, uint64 [B * height * width, 4, P].
        height: Pixels along y.
        width: Pixels along x.
        kernel: 1 or 3.
        lo: First pixel.
        hi: One past the last.
        lists: Filled for pixels lo ...
        near: The lists of all pixels for themselves, which a 3x3 kernel merges: filled where
            lo = 0, and needed for the pixels that follow. Unused by a 1x1 kernel.
    """
    inputs = words.shape[2] * WORD
    if kernel == 1:
        list_pixels(words, lo, hi, inputs, *lists)
        return
    if lo == 0:
        list_pixels(words, 0, len(words), -1, *near)
    merge_neighbours(*near, height, width, inputs, lo, hi, *lists)
