"""Lists of events from packed spikes.

For a pixel, or a pixel and its neighbours, the rows of weights to add, grouped by the pattern of
the four steps in which the channel fired. A channel's row is then loaded once, however often it
fired. The groups follow one another in a Gray code, so that between two of them a single step
begins or ends: that is what lets `synapse` keep one running sum instead of fifteen.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange
from numba.extending import intrinsic
from numpy.typing import NDArray

from spikedriven.core.simd import (
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
    peek_word,
    poke,
    select,
    splat_i16,
    store,
)
from spikedriven.engine.bits import GROUP, WORD, Words
from spikedriven.engine.ops.events.reference import GRAY
from spikedriven.engine.schedule import ROW as SCHEDULE_ROW
from spikedriven.engine.schedule import flat, strides

BLOCK = 16
"""Pixels of a task."""
SLACK = 64
"""Entries past a list's end that vector stores may touch."""

_GRAY = np.array(GRAY, np.int64)
_PLACE = np.zeros(16, np.int64)  # pattern -> place in the Gray code
_PLACE[_GRAY] = np.arange(len(GRAY))
_COMPRESS = has_compress()


Array = NDArray[Any]


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
def _sort_vector(ids, codes, m, filler, events, at, borders, n):
    store(codes, m, splat_i16(0))
    begin = at
    poke(borders, n, 0)
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
            poke(events, at, filler)
            at += 1
        poke(borders, n + place + 1, at - begin)


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
def _sort_scalar(ids, codes, m, filler, events, at, borders, n):
    cursor = np.zeros(16, np.int64)
    for j in range(m):
        cursor[_PLACE[codes[j]]] += 1
    begin = at
    poke(borders, n, 0)
    for place in range(15):
        number = cursor[place]
        cursor[place] = at
        at += number
        if filler >= 0 and number & 1:
            poke(events, at, filler)
            at += 1
        poke(borders, n + place + 1, at - begin)
    for j in range(m):
        place = _PLACE[codes[j]]
        events[cursor[place]] = ids[j]
        cursor[place] += 1


def list_pixels(
    words: Words, lo: int, hi: int, filler: int, events: Array, borders: Array, counts: Array
) -> None:
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
    panels, room = words.shape[2], events.shape[1]
    tasks = strides(-(-(hi - lo) // BLOCK), BLOCK * GROUP * panels, BLOCK * room, BLOCK)
    _list_tasks(
        tasks, words[lo:hi].reshape(-1), panels, hi - lo, filler, events.reshape(-1), room,
        borders.reshape(-1), counts.reshape(-1),
    )  # fmt: skip


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def _list_tasks(tasks, words, panels, pixels, filler, events, room, borders, counts):
    step_1 = panels
    step_2 = step_1 + panels
    step_3 = step_2 + panels
    for task in prange(tasks.size >> SCHEDULE_ROW):
        ids = np.empty(room, np.uint16)
        codes = np.empty(room, np.uint16)
        word = peek(tasks, task << SCHEDULE_ROW)
        at = peek(tasks, (task << SCHEDULE_ROW) + 1)
        i = peek(tasks, (task << SCHEDULE_ROW) + 2)
        last = min(i + BLOCK, pixels)
        while i < last:
            m = 0
            n0 = n1 = n2 = n3 = 0
            row = 0
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
            n = i << 2
            poke(counts, n, n0)
            poke(counts, n + 1, n1)
            poke(counts, n + 2, n2)
            poke(counts, n + 3, n3)
            if _COMPRESS:
                _sort_vector(ids, codes, m, filler, events, at, borders, i << 4)
            else:
                _sort_scalar(ids, codes, m, filler, events, at, borders, i << 4)
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
    near_room, room = near.events.shape[1], lists.events.shape[1]
    first = np.arange(lo, hi, BLOCK)
    tasks = flat([first % width, first // width % height, first, (first - lo) * room])
    place = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    _merge_tasks(
        tasks, place, place * near_room, np.arange(10) * inputs, lo,
        strides(len(near.events), near_room), near.events.reshape(-1), near.borders.reshape(-1),
        near.counts.reshape(-1), height, width, hi, lists.events.reshape(-1), room,
        lists.borders.reshape(-1), lists.counts.reshape(-1),
    )  # fmt: skip


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def _merge_tasks(
    tasks, places, jumps, tap_rows, lo, near_starts, near, near_borders, near_counts, height, width,
    hi, events, room, borders, counts,
):  # fmt: skip
    for task in prange(tasks.size >> SCHEDULE_ROW):
        plan = task << SCHEDULE_ROW
        x, y = peek(tasks, plan), peek(tasks, plan + 1)
        pixel, begin = peek(tasks, plan + 2), peek(tasks, plan + 3)
        last = min(pixel + BLOCK, hi)
        border = np.empty(9, np.int64)  # of the taps in sight: where their groups' borders stand
        starts = np.empty(9, np.int64)  # where their next group begins
        origins = np.empty(9, np.int64)  # where their lists begin
        rows = np.empty(9, np.int64)
        while pixel < last:
            own = peek(near_starts, pixel << SCHEDULE_ROW)
            taps = 0
            n0 = n1 = n2 = n3 = 0
            tap = 0
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        source = pixel + peek(places, tap)
                        poke(border, taps, (source << 4) + 1)
                        poke(starts, taps, own + peek(jumps, tap))
                        poke(origins, taps, own + peek(jumps, tap))
                        poke(rows, taps, peek(tap_rows, tap))
                        taps += 1
                        n = source << 2
                        n0 += peek(near_counts, n)
                        n1 += peek(near_counts, n + 1)
                        n2 += peek(near_counts, n + 2)
                        n3 += peek(near_counts, n + 3)
                    tap += 1
            i = pixel - lo
            n = i << 2
            poke(counts, n, n0)
            poke(counts, n + 1, n1)
            poke(counts, n + 2, n2)
            poke(counts, n + 3, n3)
            at = begin
            n = i << 4
            poke(borders, n, 0)
            for place in range(15):
                first = at
                tap = 0
                while tap < taps:
                    j = peek(starts, tap)
                    end = peek(origins, tap) + peek(near_borders, peek(border, tap) + place)
                    poke(starts, tap, end)
                    shift = splat_i16(peek(rows, tap))
                    store(events, at, load_i16(near, j) + shift)  # rarely more than this
                    number = end - j
                    while number > 32:
                        at += 32
                        j += 32
                        number -= 32
                        store(events, at, load_i16(near, j) + shift)
                    at += number
                    tap += 1
                if (at - first) & 1:
                    poke(events, at, peek(tap_rows, 9))
                    at += 1
                poke(borders, n + place + 1, at - begin)
            begin += room
            pixel += 1
            x += 1
            if x == width:
                x = 0
                y += 1
                if y == height:
                    y = 0


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
    merge_neighbours(near, height, width, inputs, lo, hi, lists)
