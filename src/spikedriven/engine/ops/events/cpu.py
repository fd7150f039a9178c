"""Lists of events from packed spikes.

For a pixel, or a pixel and its neighbours, the rows of weights to add, grouped by the pattern of
the four steps in which the channel fired. A channel's row is then loaded once, however often it
fired. The groups follow one another in a Gray code, so that between two of them a single step
begins or ends: that is what lets `synapse` keep one running sum instead of fifteen.

A list belongs to a tile of weights: a whole kernel or, where that would not fit the cache, one of
its taps. The taps then read the same lists, each those of other pixels (`visits`).
"""

# mypy: disable-error-code="no-untyped-def"

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange
from numba.extending import intrinsic
from numpy.typing import NDArray

from spikedriven.core.kernels import inlined, makes_arrays, parallel_kernel
from spikedriven.core.simd import (
    I16,
    bits_of,
    compress,
    count_bits,
    equal,
    has_compress,
    load_i16,
    load_i16x16,
    lowest_bit,
    mask_32,
    peek,
    peek_word,
    poke,
    select,
    splat_i16,
    splat_i16x16,
    store,
)
from spikedriven.engine.bits import GROUP, WORD, Words
from spikedriven.engine.ops.events.reference import GRAY
from spikedriven.engine.schedule import ROW as SCHEDULE_ROW
from spikedriven.engine.schedule import flat, strides

TILE_ROWS = 2048
"""Rows of a kernel that is one tile. A tile's first-level cache misses cost more from here on than
a list for each of nine tiles."""
BLOCK = 16
"""Pixels of a task."""
SLACK = 64
"""Entries past a list's end that vector stores may touch."""

_GRAY = np.array(GRAY, np.int64)
_PLACE = np.zeros(16, np.int64)  # pattern -> place in the Gray code
_PLACE[_GRAY] = np.arange(len(GRAY))
_COMPRESS = has_compress()


Array = NDArray[Any]


Lists = NDArray[np.uint16]
"""Lists of events of n pixels, and behind them an empty one for what lies beyond a border:
[n + 1, room]. In a list stand, one after the other:

- COUNTS: spikes at each of four steps;
- BORDERS: 16 places, counted from HEADER on: group g of the Gray code is what lies between places
  g and g + 1;
- from HEADER on, rows within a tile of weights. A group of odd length is filled up with the row of
  zeros, the one behind the tile's last.
"""
COUNTS, BORDERS, HEADER = 0, 4, 32


def room_for(rows: int) -> int:
    """Return the entries of a list in whole cache lines: all rows, and each group made even."""
    return -(-(HEADER + rows + len(GRAY) + SLACK) // 32) * 32


def taps_listed(kernel: int, inputs: int) -> int:
    """Return how many taps a list covers: all, or one; a tap has `inputs` rows."""
    return kernel**2 if kernel**2 * inputs <= TILE_ROWS else 1


@intrinsic
def _lanes(_typing):
    """Return 0, 1, ... 31."""
    return I16(), lambda _context, _builder, _signature, _args: ir.Constant(I16.ir, list(range(32)))


@inlined
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


@inlined
def _sort_vector(ids, codes, m, filler, lists, at):
    store(codes, m, splat_i16(0))
    border = at + BORDERS
    at += HEADER
    begin = at
    poke(lists, border, 0)
    for place in range(15):
        first = at
        wanted = splat_i16(_GRAY[place])
        j = 0
        while j < m:
            mask = equal(load_i16(codes, j), wanted)
            store(lists, at, compress(load_i16(ids, j), mask))
            at += count_bits(bits_of(mask))
            j += 32
        if filler >= 0 and (at - first) & 1:
            poke(lists, at, filler)
            at += 1
        border += 1
        poke(lists, border, at - begin)


@inlined
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


@inlined
def _sort_scalar(ids, codes, m, cursor, filler, lists, at):
    cursor[:] = 0
    for j in range(m):
        cursor[_PLACE[codes[j]]] += 1
    border = at + BORDERS
    at += HEADER
    begin = at
    poke(lists, border, 0)
    for place in range(15):
        number = cursor[place]
        cursor[place] = at
        at += number
        if filler >= 0 and number & 1:
            poke(lists, at, filler)
            at += 1
        border += 1
        poke(lists, border, at - begin)
    for j in range(m):
        place = _PLACE[codes[j]]
        lists[cursor[place]] = ids[j]
        cursor[place] += 1


def list_pixels(words: Words, filler: int, lists: Lists) -> None:
    """List the events of every pixel for itself.

    Args:
        words: Packed spikes, uint64 [n, 4, P].
        filler: What fills a group of odd length up: the row of zeros. -1 leaves it odd.
        lists: Filled, but for the last.
    """
    pixels, _, panels = words.shape
    room = lists.shape[1]
    tasks = strides(-(-pixels // BLOCK), BLOCK * GROUP * panels, BLOCK * room, BLOCK)
    _list_tasks(tasks, words.reshape(-1), panels, pixels, filler, lists.reshape(-1), room)


@parallel_kernel
def _list_tasks(tasks, words, panels, pixels, filler, lists, room):
    for task in prange(tasks.size >> SCHEDULE_ROW):
        _list_task(
            np.int64(task) << SCHEDULE_ROW, tasks, words, panels, pixels, filler, lists, room
        )


@makes_arrays
def _list_task(plan, tasks, words, panels, pixels, filler, lists, room):
    step_1 = panels
    step_2 = step_1 + panels
    step_3 = step_2 + panels
    ids = np.empty(room, np.uint16)
    codes = np.empty(room, np.uint16)
    cursor = np.empty(16, np.int64)
    word = peek(tasks, plan)
    at = peek(tasks, plan + 1)
    i = peek(tasks, plan + 2)
    last = min(i + BLOCK, pixels)
    while i < last:
        m = row = np.int64(0)  # the same type at every call
        n0 = n1 = n2 = n3 = 0
        end = word + panels
        while word < end:
            b0, b1 = peek_word(words, word), peek_word(words, word + step_1)
            b2, b3 = peek_word(words, word + step_2), peek_word(words, word + step_3)
            if b0 | b1 | b2 | b3:
                n0 += count_bits(b0)
                n1 += count_bits(b1)
                n2 += count_bits(b2)
                n3 += count_bits(b3)
                if _COMPRESS:
                    m = _collect_vector(b0, b1, b2, b3, row, ids, codes, m)
                else:
                    m = _collect_scalar(b0, b1, b2, b3, row, ids, codes, m)
            row += WORD
            word += 1
        word += step_3
        poke(lists, at, n0)
        poke(lists, at + 1, n1)
        poke(lists, at + 2, n2)
        poke(lists, at + 3, n3)
        if _COMPRESS:
            _sort_vector(ids, codes, m, filler, lists, at)
        else:
            _sort_scalar(ids, codes, m, cursor, filler, lists, at)
        at += room
        i += 1


def merge_neighbours(
    near: Lists, height: int, width: int, inputs: int, lo: int, hi: int, lists: Lists
) -> None:
    """Merge the lists of each pixel's 3x3 neighbourhood, for a convolution with a silent border.

    Args:
        near: Lists of all pixels for themselves, odd groups left odd.
        height: Pixels along y.
        width: Pixels along x.
        inputs: Rows of weights for each of the nine taps.
        lo: First pixel.
        hi: One past the last.
        lists: Filled for pixels lo ... hi - 1, groups of even length.
    """
    near_room, room = near.shape[1], lists.shape[1]
    first = np.arange(lo, hi, BLOCK)
    tasks = flat([first % width, first // width % height, first])
    place = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    _merge_tasks(
        tasks, place * near_room, np.arange(10) * inputs, strides(len(near), near_room),
        near.reshape(-1), height, width, lo, hi, strides(len(lists), room), lists.reshape(-1),
    )  # fmt: skip


@parallel_kernel
def _merge_tasks(
    tasks, jumps, tap_rows, near_starts, near, height, width, lo, hi, starts_of_lists, lists
):  # fmt: skip
    for task in prange(tasks.size >> SCHEDULE_ROW):
        _merge_task(
            np.int64(task) << SCHEDULE_ROW, tasks, jumps, tap_rows, near_starts, near, height,
            width, lo, hi, starts_of_lists, lists,
        )  # fmt: skip


@makes_arrays
def _merge_task(
    plan, tasks, jumps, tap_rows, near_starts, near, height, width, lo, hi, starts_of_lists, lists
):
    x, y, pixel = peek(tasks, plan), peek(tasks, plan + 1), peek(tasks, plan + 2)
    last = min(pixel + BLOCK, hi)
    sources = np.empty(9, np.int64)  # of the taps in sight: their lists
    starts = np.empty(9, np.int64)  # where their next group begins
    rows = np.empty(9, np.int64)
    while pixel < last:
        own = peek(near_starts, pixel << SCHEDULE_ROW)
        begin = peek(starts_of_lists, (pixel - lo) << SCHEDULE_ROW)
        taps = 0
        n0 = n1 = n2 = n3 = 0
        tap = 0
        for dy in range(-1, 2):
            for dx in range(-1, 2):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    source = own + peek(jumps, tap)
                    poke(sources, taps, source)
                    poke(starts, taps, source + HEADER)
                    poke(rows, taps, peek(tap_rows, tap))
                    taps += 1
                    n0 += peek(near, source)
                    n1 += peek(near, source + 1)
                    n2 += peek(near, source + 2)
                    n3 += peek(near, source + 3)
                tap += 1
        poke(lists, begin, n0)
        poke(lists, begin + 1, n1)
        poke(lists, begin + 2, n2)
        poke(lists, begin + 3, n3)
        border = begin + BORDERS
        poke(lists, border, 0)
        at = begin + HEADER
        for place in range(BORDERS + 1, BORDERS + 16):
            first = at
            tap = 0
            while tap < taps:
                j, source = peek(starts, tap), peek(sources, tap)
                end = source + HEADER + peek(near, source + place)
                poke(starts, tap, end)
                shift = splat_i16x16(peek(rows, tap))
                store(lists, at, load_i16x16(near, j) + shift)  # rarely more than this
                number = end - j
                while number > 16:
                    at += 16
                    j += 16
                    number -= 16
                    store(lists, at, load_i16x16(near, j) + shift)
                at += number
                tap += 1
            if (at - first) & 1:
                poke(lists, at, peek(tap_rows, 9))  # the row of zeros
                at += 1
            border += 1
            poke(lists, border, at - begin - HEADER)
        pixel += 1
        x += 1
        if x == width:
            x = 0
            y += 1
            if y == height:
                y = 0


@lru_cache(maxsize=64)
def visits(images: int, height: int, width: int, tiles: int, room: int) -> NDArray[np.int64]:
    """Return where the list stands that each tile of each pixel reads: [pixels, tiles].

    One tile reads the pixel's own list. Of nine, each reads that of a pixel in the 3x3
    neighbourhood; beyond the border it is the empty list.
    """
    pixels = images * height * width
    own = np.arange(pixels)
    if tiles == 1:
        return own[:, None] * room
    framed = np.full((images, height + 2, width + 2), pixels)
    framed[:, 1:-1, 1:-1] = own.reshape(images, height, width)
    taps = [(dy, dx) for dy in range(3) for dx in range(3)]
    seen = [framed[:, dy : dy + height, dx : dx + width].reshape(-1) for dy, dx in taps]
    return np.stack(seen, axis=1) * room
