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
    both,
    compress,
    count_bits,
    differ,
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
- from HEADER on, entries: rows within a tile of weights, each as its number << ENTRY_SHIFT. A row
  has 64 elements, so that is an eighth of where it begins, and an x86 address takes eight times a
  register as it is. A group is filled up to a multiple of four with the row of zeros, the one
  behind the tile's last.
"""
COUNTS, BORDERS, HEADER = 0, 4, 32
ENTRY_SHIFT = 3
_TAG, _NOBODY = (1 << ENTRY_SHIFT) - 1, 4
"""An entry's free bits, and what stands there in an entry that is none."""


def room_for(rows: int) -> int:
    """Return the entries of a list in whole cache lines: all rows, and each group filled up."""
    return -(-(HEADER + rows + 3 * len(GRAY) + SLACK) // 32) * 32


def taps_listed(kernel: int, inputs: int) -> int:
    """Return how many taps a list covers: all, or one; a tap has `inputs` rows."""
    return kernel**2 if kernel**2 * inputs <= TILE_ROWS else 1


@intrinsic
def _entries(_typing):
    """Return the entries of rows 0, 1, ... 31."""
    entries = [row << ENTRY_SHIFT for row in range(32)]
    return I16(), lambda _context, _builder, _signature, _args: ir.Constant(I16.ir, entries)


@inlined
def _collect_vector(b0, b1, b2, b3, entry, tagged, ends):
    # Put the entries of a word's active channels into the bucket of their last two steps; the first
    # two steps ride in the entry's lowest bits, which are free.
    m0, m1, m2, m3 = peek(ends, 0), peek(ends, 1), peek(ends, 2), peek(ends, 3)
    half = np.uint64(0xFFFFFFFF)
    for _ in range(2):
        if (b0 | b1 | b2 | b3) & half:
            zero = splat_i16(0)
            x = _entries() + splat_i16(entry)
            x = x + select(mask_32(b0), splat_i16(1), zero)
            x = x + select(mask_32(b1), splat_i16(2), zero)
            neither, third = (b0 | b1) & ~(b2 | b3) & half, b2 & ~b3 & half
            fourth, latter = b3 & ~b2 & half, b2 & b3 & half
            store(tagged, m0, compress(x, mask_32(neither)))
            store(tagged, m1, compress(x, mask_32(third)))
            store(tagged, m2, compress(x, mask_32(latter)))
            store(tagged, m3, compress(x, mask_32(fourth)))
            m0 += count_bits(neither)
            m1 += count_bits(third)
            m2 += count_bits(latter)
            m3 += count_bits(fourth)
        entry += 32 << ENTRY_SHIFT
        b0, b1 = b0 >> np.uint64(32), b1 >> np.uint64(32)
        b2, b3 = b2 >> np.uint64(32), b3 >> np.uint64(32)
    poke(ends, 0, m0)
    poke(ends, 1, m1)
    poke(ends, 2, m2)
    poke(ends, 3, m3)


@inlined
def _sort_vector(tagged, begins, ends, filler, lists, at):
    for bucket in range(4):  # what a vector takes up behind an end is in no group
        store(tagged, peek(ends, bucket), splat_i16(_NOBODY))
    border = at + BORDERS
    at += HEADER
    begin = at
    poke(lists, border, 0)
    for place in range(15):
        first = at
        bucket = (place + 1) >> 2
        j, end = peek(begins, bucket), peek(ends, bucket)
        wanted = splat_i16(_GRAY[place] & 3)
        while j < end:
            x = load_i16(tagged, j)
            mask = equal(both(x, splat_i16(_TAG)), wanted)
            store(lists, at, compress(differ(x, wanted), mask))
            at += count_bits(bits_of(mask))
            j += 32
        if filler >= 0:
            at = _filled_up(lists, at, at - first, filler)
        border += 1
        poke(lists, border, at - begin)
    return at - begin


@inlined
def _filled_up(lists, at, number, filler):
    # To a multiple of four; what is written too far, the next group overwrites.
    poke(lists, at, filler)
    poke(lists, at + 1, filler)
    poke(lists, at + 2, filler)
    return at + (-number & 3)


@inlined
def _collect_scalar(b0, b1, b2, b3, entry, ids, codes, m):
    active = b0 | b1 | b2 | b3
    one = np.uint64(1)
    while active:
        c = lowest_bit(active)
        active &= active - one
        at = np.uint64(c)
        code = ((b0 >> at) & one) | (((b1 >> at) & one) << one)
        code |= (((b2 >> at) & one) | (((b3 >> at) & one) << one)) << np.uint64(2)
        ids[m] = entry + (c << ENTRY_SHIFT)
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
        if filler >= 0:
            at = _filled_up(lists, at + number, number, filler)
        else:
            at += number
        border += 1
        poke(lists, border, at - begin)
    for j in range(m):
        place = _PLACE[codes[j]]
        lists[cursor[place]] = ids[j]
        cursor[place] += 1
    return at - begin


def list_pixels(words: Words, filler: int, lists: Lists, totals: Array) -> None:
    """List the events of every pixel for itself.

    Args:
        words: Packed spikes, uint64 [n, 4, P].
        filler: The row that fills a group up: that of zeros. -1 leaves the groups as they are.
        lists: Filled, but for the last.
        totals: Filled: of each list its spikes and its entries, int64 [2, n].
    """
    pixels, _, panels = words.shape
    room = lists.shape[1]
    tasks = strides(-(-pixels // BLOCK), BLOCK * GROUP * panels, BLOCK * room, BLOCK)
    _list_tasks(
        tasks, words.reshape(-1), panels, pixels, -1 if filler < 0 else filler << ENTRY_SHIFT,
        lists.reshape(-1), room, totals.reshape(-1),
    )  # fmt: skip


@parallel_kernel
def _list_tasks(tasks, words, panels, pixels, filler, lists, room, totals):
    for task in prange(tasks.size >> SCHEDULE_ROW):
        _list_task(
            np.int64(task) << SCHEDULE_ROW, tasks, words, panels, pixels, filler, lists, room,
            totals,
        )  # fmt: skip


@makes_arrays
def _list_task(plan, tasks, words, panels, pixels, filler, lists, room, totals):
    step_1 = panels
    step_2 = step_1 + panels
    step_3 = step_2 + panels
    ids = np.empty(room << 2, np.uint16)
    if _COMPRESS:  # four buckets of entries
        begins = np.empty(4, np.int64)
        begin = np.int64(0)
        for bucket in range(4):
            poke(begins, bucket, begin)
            begin += room
        ends = np.empty(4, np.int64)
    else:
        codes = np.empty(room, np.uint16)
        cursor = np.empty(16, np.int64)
    second = totals.size >> 1  # the row of entries, behind that of spikes
    word = peek(tasks, plan)
    at = peek(tasks, plan + 1)
    i = peek(tasks, plan + 2)
    last = min(i + BLOCK, pixels)
    while i < last:
        m = entry = np.int64(0)  # the same type at every call
        n0 = n1 = n2 = n3 = 0
        if _COMPRESS:
            for bucket in range(4):
                poke(ends, bucket, peek(begins, bucket))
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
                    _collect_vector(b0, b1, b2, b3, entry, ids, ends)
                else:
                    m = _collect_scalar(b0, b1, b2, b3, entry, ids, codes, m)
            entry += WORD << ENTRY_SHIFT
            word += 1
        word += step_3
        poke(lists, at, n0)
        poke(lists, at + 1, n1)
        poke(lists, at + 2, n2)
        poke(lists, at + 3, n3)
        if _COMPRESS:
            entries = _sort_vector(ids, begins, ends, filler, lists, at)
        else:
            entries = _sort_scalar(ids, codes, m, cursor, filler, lists, at)
        poke(totals, i, n0 + n1 + n2 + n3)
        poke(totals, second + i, entries)
        at += room
        i += 1


def merge_neighbours(
    near: Lists, height: int, width: int, inputs: int, lo: int, hi: int, lists: Lists,
    totals: Array,
) -> None:  # fmt: skip
    """Merge the lists of each pixel's 3x3 neighbourhood, for a convolution with a silent border.

    Args:
        near: Lists of all pixels for themselves, their groups not filled up.
        height: Pixels along y.
        width: Pixels along x.
        inputs: Rows of weights for each of the nine taps.
        lo: First pixel.
        hi: One past the last.
        lists: Filled for pixels lo ... hi - 1, groups filled up.
        totals: Filled likewise: of each list its spikes and its entries, int64 [2, n].
    """
    near_room, room = near.shape[1], lists.shape[1]
    first = np.arange(lo, hi, BLOCK)
    tasks = flat([first % width, first // width % height, first])
    place = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    _merge_tasks(
        tasks, place * near_room, np.arange(10) * inputs << ENTRY_SHIFT,
        strides(len(near), near_room), near.reshape(-1), height, width, lo, hi,
        strides(len(lists), room), lists.reshape(-1), totals.reshape(-1),
    )  # fmt: skip


@parallel_kernel
def _merge_tasks(
    tasks, jumps, tap_rows, near_starts, near, height, width, lo, hi, starts_of_lists, lists, totals
):  # fmt: skip
    for task in prange(tasks.size >> SCHEDULE_ROW):
        _merge_task(
            np.int64(task) << SCHEDULE_ROW, tasks, jumps, tap_rows, near_starts, near, height,
            width, lo, hi, starts_of_lists, lists, totals,
        )  # fmt: skip


@makes_arrays
def _merge_task(
    plan, tasks, jumps, tap_rows, near_starts, near, height, width, lo, hi, starts_of_lists, lists,
    totals,
):  # fmt: skip
    x, y, pixel = peek(tasks, plan), peek(tasks, plan + 1), peek(tasks, plan + 2)
    last = min(pixel + BLOCK, hi)
    sources = np.empty(9, np.int64)  # of the taps in sight: their lists
    starts = np.empty(9, np.int64)  # where their next group begins
    rows = np.empty(9, np.int64)
    second = totals.size >> 1
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
            at = _filled_up(lists, at, at - first, peek(tap_rows, 9))  # the row of zeros
            border += 1
            poke(lists, border, at - begin - HEADER)
        poke(totals, pixel - lo, n0 + n1 + n2 + n3)
        poke(totals, second + pixel - lo, at - begin - HEADER)
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
