"""Lists of events from packed spikes.

For a pixel and its neighbours, the rows of weights to add, grouped by the pattern of the four steps
in which the channel fired. A channel's row is then loaded once, however often it fired. The groups
follow one another in a Gray code, so that between two of them a single step begins or ends: that is
what lets `synapse` keep one running sum instead of fifteen.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from llvmlite import ir
from numba import njit, prange
from numba.extending import intrinsic

from spikedriven.engine.bits import WORD
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
def _sort_vector(ids, codes, m, zero_row, groups, ends, events, at, borders, i):
    # Each group grows in a place of its own, so that none waits for another; then they are joined.
    store(codes, m, splat_i16(0))
    room = groups.shape[1]
    for place in range(15):
        ends[place] = place * room
    flat = groups.reshape(-1)
    for j in range(0, m, 32):
        code, row = load_i16(codes, j), load_i16(ids, j)
        for place in range(15):
            mask = equal(code, splat_i16(_GRAY[place]))
            end = ends[place]
            store(flat, end, compress(row, mask))
            ends[place] = end + count_bits(bits_of(mask))
    begin = at
    borders[i, 0] = 0
    for place in range(15):
        first, last = place * room, ends[place]
        store(flat, last, splat_i16(zero_row))
        even = last + ((last - first) & 1)
        for j in range(first, even, 32):
            store(events, at + j - first, load_i16(flat, j))
        at += even - first
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
def _sort_scalar(ids, codes, m, zero_row, events, at, borders, i):
    cursor = np.zeros(16, np.int64)
    for j in range(m):
        cursor[_PLACE[codes[j]]] += 1
    begin = at
    borders[i, 0] = 0
    for place in range(15):
        number = cursor[place]
        cursor[place] = at
        at += number
        if number & 1:
            events[at] = zero_row
            at += 1
        borders[i, place + 1] = at - begin
    for j in range(m):
        place = _PLACE[codes[j]]
        events[cursor[place]] = ids[j]
        cursor[place] += 1


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def list_events(words, height, width, kernel, lo, hi, events, borders, counts):
    """List the events of pixels lo ... hi - 1.

    Args:
        words: Packed spikes, uint64 [B * height * width, 4, P].
        height: Pixels along y.
        width: Pixels along x.
        kernel: 1 or 3.
        lo: First pixel.
        hi: One past the last.
        events: Filled: uint16 [hi - lo, capacity], rows of weights; a group of odd length is filled
            up with the row of zeros, the one behind the last.
        borders: Filled: int32 [hi - lo, 16]; group g of the Gray code is borders[g] : borders[g+1].
        counts: Filled: int32 [hi - lo, 4], spikes in sight of the pixel at each step.
    """
    panels = words.shape[2]
    room = events.shape[1]
    flat = events.reshape(-1)
    zero_row = kernel * kernel * panels * WORD
    pad = kernel // 2
    block = 16
    for task in prange((hi - lo + block - 1) // block):
        ids = np.empty(room, np.uint16)
        codes = np.empty(room, np.uint16)
        groups = np.empty((15, room if _COMPRESS else 1), np.uint16)
        ends = np.empty(15, np.int64)
        for i in range(task * block, min((task + 1) * block, hi - lo)):
            pixel = lo + i
            y = (pixel // width) % height
            x = pixel % width
            m = 0
            n0 = n1 = n2 = n3 = 0
            for tap in range(kernel * kernel):
                dy, dx = tap // kernel - pad, tap % kernel - pad
                if y + dy < 0 or y + dy >= height or x + dx < 0 or x + dx >= width:
                    continue
                source = pixel + dy * width + dx
                row = tap * panels * WORD
                for p in range(panels):
                    b0, b1 = words[source, 0, p], words[source, 1, p]
                    b2, b3 = words[source, 2, p], words[source, 3, p]
                    if b0 | b1 | b2 | b3:
                        n0 += count_bits(b0)
                        n1 += count_bits(b1)
                        n2 += count_bits(b2)
                        n3 += count_bits(b3)
                        if _COMPRESS:
                            m = _collect_vector(b0, b1, b2, b3, row + p * WORD, ids, codes, m)
                        else:
                            m = _collect_scalar(b0, b1, b2, b3, row + p * WORD, ids, codes, m)
            counts[i, 0], counts[i, 1], counts[i, 2], counts[i, 3] = n0, n1, n2, n3
            if _COMPRESS:
                _sort_vector(
                    ids, codes, m, zero_row, groups, ends, flat, i * room, borders, i
                )
            else:
                _sort_scalar(ids, codes, m, zero_row, flat, i * room, borders, i)
