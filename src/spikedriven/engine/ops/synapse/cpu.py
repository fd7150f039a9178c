"""Spikes through weights, event by event, with the neurons behind them in the same registers.

A panel is 64 output channels, a tile a part of its rows that lies in the first-level cache. For
each pixel the rows of its events are added to one running sum; where the Gray code of the events'
groups lets a step begin, that step's sum gives the running sum away, and where it ends, takes it
back. Between two tiles the sums of a block of pixels are set aside. Two rows are first added in
their own narrow width, so that the odd elements can be split off by a shift; the even ones are
stored with an offset that keeps them positive, and what that added is taken off once per pixel.
All sums wrap around; the compiler (`compile.py`) proves that the final ones fit.
"""

# mypy: disable-error-code="no-untyped-def"

from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np
from numba import get_num_threads, prange, types
from numba.extending import overload
from numpy.typing import NDArray

from spikedriven.core.kernels import (
    INLINED,
    called_by_kernels,
    inlined,
    makes_arrays,
    parallel_kernel,
)
from spikedriven.core.memory import zeros
from spikedriven.core.simd import (
    as_i16,
    as_i32,
    both,
    differ,
    has_shift_each,
    high_half,
    load_four,
    load_i8,
    load_i16,
    load_i32,
    low_half,
    peek,
    poke,
    prefetch,
    shift_left,
    shift_left_each,
    shift_right,
    splat_i16,
    splat_i32,
    store,
)
from spikedriven.engine.bits import GROUP, WORD, Words, words_for
from spikedriven.engine.ops.events.cpu import BORDERS, ENTRY_SHIFT, HEADER, Lists
from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.plan import Integers

OFFSET = {np.dtype(np.int8): 64, np.dtype(np.int16): 16384}
"""What is added to even elements; a weight's magnitude must stay below it."""

Array = NDArray[Any]

_SHIFT_EACH = has_shift_each()
NEVER = np.iinfo(np.int32).max
"""Threshold of a channel that is only padding."""


def lay_out(weight: Integers, tiles: int = 1) -> Integers:
    """Arrange weights [k, k, C, D] as rows for the kernels: [panels, tiles, rows + 1, 64].

    Rows are taps times input channels (padded to words), k * k / tiles taps in a tile; the last of
    each tile is zeros.
    """
    kernel, _, channels, outputs = weight.shape
    taps, inputs, panels = kernel * kernel, words_for(channels) * WORD, words_for(outputs)
    padded = np.zeros((taps, inputs, panels * WORD), weight.dtype)
    padded[:, :channels, :outputs] = weight.reshape(taps, channels, outputs)
    half = 32 if weight.dtype == np.int8 else 16  # lanes of the widened vector
    size = taps * inputs // tiles
    split = padded.reshape(tiles, size, panels, WORD // (2 * half), 2, half)
    split = split.transpose(2, 0, 1, 3, 5, 4).copy()
    split[..., 0] += weight.dtype.type(OFFSET[weight.dtype])
    rows = zeros((panels, tiles, size + 1, WORD), weight.dtype)
    rows[:, :, :-1] = split.reshape(panels, tiles, size, WORD)
    return rows


def padded_to_words(values: Integers, fill: int) -> NDArray[np.int32]:
    """Return one int32 per channel, filled up to whole words."""
    padded = zeros((words_for(len(values)) * WORD,), np.int32)
    padded[:] = fill
    padded[: len(values)] = values
    return padded


def gain_digits(gain: Integers) -> NDArray[np.int32]:
    """Split gains into what the kernels add: int32 [7, C].

    A gain is (4 + 2 a + b) << n with n = 8 c + 4 d + 2 e + f: rows are a to f as masks, -1 where
    set, and n.
    """
    padded = padded_to_words(gain, 4).astype(np.int64)
    exponent = np.zeros(len(padded), np.int64)
    while (large := padded >= 8).any():
        exponent += large
        padded = np.where(large, padded >> 1, padded)
    digits = [-((padded >> 1) & 1), -(padded & 1)]
    digits += [-((exponent >> place) & 1) for place in (3, 2, 1, 0)]
    return np.stack([*digits, exponent]).astype(np.int32)


# ------------------------------------------------------------------ sums of one pixel and panel


def _silence(rows):
    raise NotImplementedError  # compiled code only


@overload(_silence, jit_options=INLINED)
def _silence_typed(rows):
    if rows.dtype == types.int8:
        return lambda rows: (splat_i16(0), splat_i16(0))
    return lambda rows: (splat_i32(0), splat_i32(0), splat_i32(0), splat_i32(0))


def _plus(x, y):
    raise NotImplementedError


@overload(_plus, jit_options=INLINED)
def _plus_typed(x, y):
    if len(x) == 2:
        return lambda x, y: (x[0] + y[0], x[1] + y[1])
    return lambda x, y: (x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3])


def _minus(x, y):
    raise NotImplementedError


@overload(_minus, jit_options=INLINED)
def _minus_typed(x, y):
    if len(x) == 2:
        return lambda x, y: (x[0] - y[0], x[1] - y[1])
    return lambda x, y: (x[0] - y[0], x[1] - y[1], x[2] - y[2], x[3] - y[3])


def _set_aside(rows):
    raise NotImplementedError


@overload(_set_aside)
def _set_aside_typed(rows):
    # Room for the sums of four steps of a block of pixels.
    if rows.dtype == types.int8:
        return lambda rows: np.empty(BLOCK << 8, np.int16)
    return lambda rows: np.empty(BLOCK << 8, np.int32)


def _take_up(aside, at):
    raise NotImplementedError


@overload(_take_up, jit_options=INLINED)
def _take_up_typed(aside, at):
    if aside.dtype == types.int16:
        return lambda aside, at: (load_i16(aside, at), load_i16(aside, at + 32))
    return lambda aside, at: (
        load_i32(aside, at),
        load_i32(aside, at + 16),
        load_i32(aside, at + 32),
        load_i32(aside, at + 48),
    )


def _put_down(aside, at, sums):
    raise NotImplementedError


@overload(_put_down, jit_options=INLINED)
def _put_down_typed(aside, at, sums):
    def two(aside, at, sums):
        store(aside, at, sums[0])
        store(aside, at + 32, sums[1])

    def four(aside, at, sums):
        store(aside, at, sums[0])
        store(aside, at + 16, sums[1])
        store(aside, at + 32, sums[2])
        store(aside, at + 48, sums[3])

    return two if len(sums) == 2 else four


@inlined
def _four_rows(base, events, j):
    # Where four rows begin. One load for the four: the processor's loads are what limits the walk.
    entries = load_four(events, j)
    return (
        base + ((entries & 0xFFFF) << ENTRY_SHIFT),
        base + (((entries >> 16) & 0xFFFF) << ENTRY_SHIFT),
        base + (((entries >> 32) & 0xFFFF) << ENTRY_SHIFT),
        base + (((entries >> 48) & 0xFFFF) << ENTRY_SHIFT),
    )


@inlined
def _walk_i8(rows, base, events, j, end, even, odd):
    # Two sums each, so that an addition need not wait for the one before.
    even2, odd2 = splat_i16(0), splat_i16(0)
    while j < end:
        one, two, three, four = _four_rows(base, events, j)
        near = as_i16(load_i8(rows, one) + load_i8(rows, two))
        far = as_i16(load_i8(rows, three) + load_i8(rows, four))
        even, even2 = even + near, even2 + far
        odd, odd2 = odd + shift_right(near, 8), odd2 + shift_right(far, 8)
        j += 4
    return even + even2, odd + odd2


@inlined
def _half_i16(rows, one, two, three, four):
    # Of half a panel: the even elements' sum, in the lower bits, and the odd ones'.
    near = as_i32(load_i16(rows, one) + load_i16(rows, two))
    far = as_i32(load_i16(rows, three) + load_i16(rows, four))
    return near + far, shift_right(near, 16) + shift_right(far, 16)


@inlined
def _walk_i16(rows, base, events, j, end, even0, odd0, even1, odd1):
    while j < end:
        one, two, three, four = _four_rows(base, events, j)
        even, odd = _half_i16(rows, one, two, three, four)
        even0, odd0 = even0 + even, odd0 + odd
        even, odd = _half_i16(rows, one + 32, two + 32, three + 32, four + 32)
        even1, odd1 = even1 + even, odd1 + odd
        j += 4
    return even0, odd0, even1, odd1


def _walk(rows, base, lists, at, group, run):
    raise NotImplementedError


@overload(_walk, jit_options=INLINED)
def _walk_typed(rows, base, lists, at, group, run):
    if rows.dtype == types.int8:

        def walk(rows, base, lists, at, group, run):
            begin = at + HEADER
            j = begin + peek(lists, at + BORDERS + group)
            end = begin + peek(lists, at + BORDERS + 1 + group)
            return _walk_i8(rows, base, lists, j, end, run[0], run[1])

        return walk

    def walk_wide(rows, base, lists, at, group, run):
        begin = at + HEADER
        j = begin + peek(lists, at + BORDERS + group)
        end = begin + peek(lists, at + BORDERS + 1 + group)
        return _walk_i16(rows, base, lists, j, end, run[0], run[1], run[2], run[3])

    return walk_wide


@inlined
def _gather(rows, base, lists, at):
    # The sums of steps a, b, c, d; `run` is the sum of all events so far.
    a = b = c = d = run = _silence(rows)
    run = _walk(rows, base, lists, at, 0, run)  # a
    b = _minus(b, run)
    run = _walk(rows, base, lists, at, 1, run)  # a b
    a = _plus(a, run)
    run = _walk(rows, base, lists, at, 2, run)  # b
    c = _minus(c, run)
    run = _walk(rows, base, lists, at, 3, run)  # b c
    a = _minus(a, run)
    run = _walk(rows, base, lists, at, 4, run)  # a b c
    b = _plus(b, run)
    run = _walk(rows, base, lists, at, 5, run)  # a c
    a = _plus(a, run)
    run = _walk(rows, base, lists, at, 6, run)  # c
    d = _minus(d, run)
    run = _walk(rows, base, lists, at, 7, run)  # c d
    a = _minus(a, run)
    run = _walk(rows, base, lists, at, 8, run)  # a c d
    b = _minus(b, run)
    run = _walk(rows, base, lists, at, 9, run)  # a b c d
    a = _plus(a, run)
    run = _walk(rows, base, lists, at, 10, run)  # b c d
    c = _plus(c, run)
    run = _walk(rows, base, lists, at, 11, run)  # b d
    a = _minus(a, run)
    run = _walk(rows, base, lists, at, 12, run)  # a b d
    b = _plus(b, run)
    run = _walk(rows, base, lists, at, 13, run)  # a d
    a = _plus(a, run)
    run = _walk(rows, base, lists, at, 14, run)  # d
    d = _plus(d, run)
    return a, b, c, d


def _widened(sums, count):
    raise NotImplementedError


@overload(_widened, jit_options=INLINED)
def _widened_typed(sums, count):
    # Four vectors of sixteen sums: the panel's channels in order.
    if len(sums) == 2:

        def from_i16(sums, count):
            even = sums[0] - shift_left(sums[1], 8) - splat_i16(count << 6)
            return low_half(even), high_half(even), low_half(sums[1]), high_half(sums[1])

        return from_i16

    def from_i32(sums, count):
        offset = splat_i32(count << 14)
        even0 = sums[0] - shift_left(sums[1], 16) - offset
        even1 = sums[2] - shift_left(sums[3], 16) - offset
        return even0, sums[1], even1, sums[3]

    return from_i32


@inlined
def _fetch_ahead(rows, at, end):
    # Bring a pixel's share of the next panel near: its rows will be wanted in no order.
    while at < end:
        prefetch(rows, at)
        at += WORD


# ------------------------------------------------------------------ what follows the sums


@inlined
def _in_one_word(b0, b1, b2, b3):
    return b0 | (b1 << np.uint64(16)) | (b2 << np.uint64(32)) | (b3 << np.uint64(48))


@inlined
def _fire_64(i, theta, leak, c, v):
    v0, b0 = fire_16(i[0], v[0], load_i32(theta, c), leak)
    v1, b1 = fire_16(i[1], v[1], load_i32(theta, c + 16), leak)
    v2, b2 = fire_16(i[2], v[2], load_i32(theta, c + 32), leak)
    v3, b3 = fire_16(i[3], v[3], load_i32(theta, c + 48), leak)
    return _in_one_word(b0, b1, b2, b3), (v0, v1, v2, v3)


@inlined
def _load_64(array, at):
    return (
        load_i32(array, at),
        load_i32(array, at + 16),
        load_i32(array, at + 32),
        load_i32(array, at + 48),
    )


@inlined
def _store_64(array, at, x):
    store(array, at, x[0])
    store(array, at + 16, x[1])
    store(array, at + 32, x[2])
    store(array, at + 48, x[3])


@inlined
def _silent_64():
    zero = splat_i32(0)
    return zero, zero, zero, zero


@inlined
def _doubled(y, times, mask):
    # y << times where the mask is set.
    return differ(y, both(differ(y, shift_left(y, times)), mask))


@inlined
def _current_16(x, streams, digits, channels, bias, places, c):
    if not streams:
        return shift_left(x, places) + load_i32(bias, c)
    # (x * gain + bias) >> places by shifts and additions; `digits` as `gain_digits` returns them.
    y = shift_left(x, 2)
    row = c + channels
    y = y + both(shift_left(x, 1), load_i32(digits, c)) + both(x, load_i32(digits, row))
    row += channels
    if _SHIFT_EACH:
        y = shift_left_each(y, load_i32(digits, row + (channels << 2)))
    else:
        for place in (3, 2, 1, 0):
            y = _doubled(y, 1 << place, load_i32(digits, row))
            row += channels
    return shift_right(y + load_i32(bias, c), places)


@inlined
def _step_64(
    sums, count, streams, digits, channels, bias, places, stream, to, begins, fires, theta, leak,
    c, v,
):  # fmt: skip
    # One step of a pixel and panel: the current, into the stream if there is one, and the neurons.
    x = _widened(sums, count)
    i = (
        _current_16(x[0], streams, digits, channels, bias, places, c),
        _current_16(x[1], streams, digits, channels, bias, places, c + 16),
        _current_16(x[2], streams, digits, channels, bias, places, c + 32),
        _current_16(x[3], streams, digits, channels, bias, places, c + 48),
    )
    if streams:
        if not begins:
            i = _plus(_load_64(stream, to), i)
        _store_64(stream, to, i)
    word = np.uint64(0)
    if fires:
        word, v = _fire_64(i, theta, leak, c, v)
    return word, v


# ------------------------------------------------------------------ who does what

_PANEL, _FIRST, _LAST, _BASE, _AHEAD, _WORDS, _SITES, _STREAM = range(8)
"""Columns of a schedule: first channel; then flat places of the first visit, the first one of the
next task, and of the first row of weights, rows to fetch, word, membrane, value of the stream."""

BLOCK = 64
"""Pixels of a task, where it needs their sums or lists more than once: these stay in the
second-level cache."""
NEAR = 1 << 19
"""Bytes of weights that stay there beside them."""


@lru_cache(maxsize=4096)
def _schedule(
    panels: int,
    panel_size: int,
    item: int,
    lo: int,
    pixels: int,
    sites: int,
    tiles: int,
    threads: int,
) -> tuple[NDArray[np.int64], int]:
    """Return the tasks [tasks, 8], and each pixel's share of a panel in elements of `item` bytes.

    All products of sizes are made here, once, so that the kernels have none. Tasks that follow one
    another share a panel of weights or, where all weights are near, a block of pixels. Threads take
    equal numbers of tasks, so that there are as many as can be shared equally.
    """
    all_near = panels * panel_size * item <= NEAR
    blocks = -(-pixels // BLOCK) if tiles > 1 or all_near else 1
    even = threads // gcd(panels, threads)
    blocks = min(-(-blocks // even) * even, pixels)
    cuts = np.arange(blocks + 1) * pixels // blocks
    p, block = np.arange(panels).repeat(blocks), np.tile(np.arange(blocks), panels)
    if all_near:
        p, block = np.tile(np.arange(panels), blocks), np.arange(blocks).repeat(panels)
    first = cuts[block]
    share = -(-panel_size // (pixels * WORD)) * WORD
    tasks = np.zeros((len(p), 8), np.int64)
    tasks[:, _PANEL] = p * WORD
    tasks[:, _FIRST] = first * tiles
    tasks[:, _LAST] = cuts[block + 1] * tiles
    tasks[:, _BASE] = p * panel_size
    # Behind the last panel there is nothing to fetch.
    tasks[:, _AHEAD] = (p + 1) * panel_size + first * share
    tasks[all_near | (p + 1 == panels), _AHEAD] = -1
    tasks[:, _WORDS] = (lo + first) * GROUP * panels + p
    tasks[:, _SITES] = ((lo + first) * panels + p) * WORD
    tasks[:, _STREAM] = (p * sites + lo + first) * GROUP * WORD
    return tasks, share


def fire_layer(
    rows: Array, lists: Lists, visits: Array, bias: Array, theta: Array, leak: Array | None,
    up: int, v: Array | None, resume: bool, words: Words, lo: int, steps: int,
) -> None:  # fmt: skip
    """Add the events' rows, then fire: packed spikes into `words`.

    Args:
        rows: Weights as `lay_out` returns them.
        lists: Lists of events, as `events.cpu.list_events` fills them.
        visits: Where the list stands that each tile of each pixel reads, int64 [pixels, tiles], as
            `events.cpu.visits` returns it.
        bias: int32 [64 panels].
        theta: int32 [64 panels].
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        up: current = (sum << up) + bias.
        v: Membranes, int32 [n, 64 panels], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        words: Filled at pixels lo ...: uint64 [n, 4, panels].
        lo: Where the pixels stand in `words`.
        steps: How many of the four steps are real, 1 ... 4; the others stay silent.
    """
    _run(rows, lists, visits, None, bias, up, None, True, theta, leak, v, resume, words, lo, steps)


def stream_layer(
    rows: Array, lists: Lists, visits: Array, digits: Array, bias: Array, down: int, stream: Array,
    begins: bool, theta: Array | None, leak: Array | None, v: Array | None, resume: bool,
    words: Words, lo: int, steps: int,
) -> None:  # fmt: skip
    """Add the events' rows, put the current into the membrane stream, fire on the stream.

    Args:
        rows: Weights as `lay_out` returns them.
        lists: Lists of events, as `events.cpu.list_events` fills them.
        visits: Where the list stands that each tile of each pixel reads, int64 [pixels, tiles].
        digits: The gains, as `gain_digits` returns them.
        bias: int32 [64 panels].
        down: current = (sum * gain + bias) >> down.
        stream: int32 [panels, n, 4, 64], overwritten or added to. A task walks along it.
        begins: Whether it is overwritten.
        theta: int32 [64 panels], or None where no neurons read the stream here.
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        v: Membranes, int32 [n, 64 panels], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        words: Filled at pixels lo ...: uint64 [n, 4, panels]; untouched where theta is None.
        lo: Where the pixels stand in `words` and `stream`.
        steps: How many of the four steps are real, 1 ... 4; the others stay silent.
    """
    _run(
        rows, lists, visits, digits, bias, down, stream, begins, theta, leak, v, resume, words,
        lo, steps,
    )  # fmt: skip


def _run(
    rows: Array, lists: Lists, visits: Array, digits: Array | None, bias: Array, places: int,
    stream: Array | None, begins: bool, theta: Array | None, leak: Array | None, v: Array | None,
    resume: bool, words: Words, lo: int, steps: int,
) -> None:  # fmt: skip
    panels, tiles, size, _ = rows.shape
    pixels = visits.shape[0]
    tasks, share = _schedule(
        panels,
        tiles * size * WORD,
        rows.itemsize,
        lo,
        pixels,
        len(words) if stream is None else stream.shape[1],
        tiles,
        get_num_threads(),
    )
    # Whether there are a stream and neurons is no matter of types: to compile all this once more
    # would take seconds. What is not there is never read.
    _run_tasks(
        tasks.reshape(-1), len(tasks), share, rows.reshape(-1), tiles, size * WORD,
        visits.reshape(-1), BLOCK * tiles, lists.reshape(-1), stream is not None,
        bias if digits is None else digits.reshape(-1), bias, places,
        bias if stream is None else stream.reshape(-1), begins, theta is not None,
        bias if theta is None else theta, leak,
        None if v is None else v.reshape(-1), resume, words.reshape(-1), panels, steps,
    )  # fmt: skip


@called_by_kernels
def _gather_block(rows, base, tiles, tile_size, visits, lists, first, end, aside):
    # The sums of a block of pixels, tile after tile. A function of its own: with all else in reach
    # the compiler would keep its pointers in memory.
    for tile in range(tiles):
        visit, at = first + tile, 0
        while visit < end:
            s0, s1, s2, s3 = _gather(rows, base, lists, peek(visits, visit))
            if tile > 0:
                s0 = _plus(s0, _take_up(aside, at))
                s1 = _plus(s1, _take_up(aside, at + 64))
                s2 = _plus(s2, _take_up(aside, at + 128))
                s3 = _plus(s3, _take_up(aside, at + 192))
            _put_down(aside, at, s0)
            _put_down(aside, at + 64, s1)
            _put_down(aside, at + 128, s2)
            _put_down(aside, at + 192, s3)
            at += 256
            visit += tiles
        base += tile_size


@inlined
def _spikes_in_sight(lists, visits, first, tiles, step):
    # Of a pixel: those of the lists that its tiles read.
    number = 0
    for visit in range(first, first + tiles):
        number += peek(lists, peek(visits, visit) + step)
    return number


@parallel_kernel
def _run_tasks(
    tasks, num_tasks, share, rows, tiles, tile_size, visits, block, lists, streams, digits, bias,
    places, stream, begins, fires, theta, leak, v, resume, words, panels, steps,
):  # fmt: skip
    for task in prange(num_tasks):
        _run_task(
            np.int64(task) << 3, tasks, share, rows, tiles, tile_size, visits, block, lists,
            streams, digits, bias, places, stream, begins, fires, theta, leak, v, resume, words,
            panels, steps,
        )  # fmt: skip


@makes_arrays
def _run_task(
    plan, tasks, share, rows, tiles, tile_size, visits, block, lists, streams, digits, bias,
    places, stream, begins, fires, theta, leak, v, resume, words, panels, steps,
):  # fmt: skip
    channels = panels << 6
    c = peek(tasks, plan + _PANEL)
    first, last = peek(tasks, plan + _FIRST), peek(tasks, plan + _LAST)
    base = peek(tasks, plan + _BASE)
    ahead = peek(tasks, plan + _AHEAD)
    out = peek(tasks, plan + _WORDS)
    at = peek(tasks, plan + _SITES)
    to = peek(tasks, plan + _STREAM)
    aside = _set_aside(rows)
    while first < last:
        end = min(first + block, last)
        _gather_block(rows, base, tiles, tile_size, visits, lists, first, end, aside)
        kept = 0
        while first < end:
            if ahead >= 0:
                _fetch_ahead(rows, ahead, ahead + share)
                ahead += share
            u = _silent_64()
            if v is not None and resume:
                u = _load_64(v, at)
            place = out
            for step in range(GROUP):
                word = np.uint64(0)
                if step < steps:
                    count = _spikes_in_sight(lists, visits, first, tiles, step)
                    word, u = _step_64(
                        _take_up(aside, kept), count, streams, digits, channels, bias, places,
                        stream, to, begins, fires, theta, leak, c, u,
                    )  # fmt: skip
                if fires:
                    poke(words, place, word)
                place += panels
                kept += 64
                to += 64
            if fires and v is not None:
                _store_64(v, at, u)
            out += panels << 2
            at += channels
            first += tiles
