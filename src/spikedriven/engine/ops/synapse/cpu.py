"""Spikes through weights, event by event, with the neurons behind them in the same registers.

A panel is 64 output channels. For each pixel the rows of its events are added to one running sum;
where the Gray code of the events' groups lets a step begin, that step's sum gives the running sum
away, and where it ends, takes it back. Two rows are first added in their own narrow width, so that
the odd elements can be split off by a shift; the even ones are stored with an offset that keeps
them positive, and what that added is taken off once per pixel. All sums wrap around; the compiler
(`compile.py`) proves that the final ones fit.
"""

# mypy: disable-error-code="no-untyped-def"

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload
from numpy.typing import NDArray

from spikedriven.core.memory import zeros
from spikedriven.core.simd import (
    as_i16,
    as_i32,
    both,
    differ,
    high_half,
    load_i8,
    load_i16,
    load_i32,
    load_two,
    low_half,
    peek,
    poke,
    prefetch,
    shift_left,
    shift_right,
    splat_i16,
    splat_i32,
    store,
)
from spikedriven.engine.bits import GROUP, WORD, Words, words_for
from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.plan import Integers

OFFSET = {np.dtype(np.int8): 64, np.dtype(np.int16): 16384}
"""What is added to even elements; a weight's magnitude must stay below it."""

Array = NDArray[Any]

NEVER = np.iinfo(np.int32).max
"""Threshold of a channel that is only padding."""


def lay_out(weight: Integers) -> Integers:
    """Arrange weights [k, k, C, D] as rows for the kernels: [panels, rows + 1, 64].

    Rows are taps times input channels (padded to words); the last is zeros.
    """
    kernel, _, channels, outputs = weight.shape
    taps, inputs, panels = kernel * kernel, words_for(channels) * WORD, words_for(outputs)
    padded = np.zeros((taps, inputs, panels * WORD), weight.dtype)
    padded[:, :channels, :outputs] = weight.reshape(taps, channels, outputs)
    by_panel = padded.reshape(taps * inputs, panels, WORD).transpose(1, 0, 2)
    rows = zeros((panels, taps * inputs + 1, WORD), weight.dtype)
    half = 32 if weight.dtype == np.int8 else 16  # lanes of the widened vector
    split = by_panel.reshape(panels, taps * inputs, WORD // (2 * half), 2, half)
    target = np.zeros((panels, taps * inputs, WORD // (2 * half), half, 2), weight.dtype)
    target[..., 0] = split[..., 0, :] + weight.dtype.type(OFFSET[weight.dtype])
    target[..., 1] = split[..., 1, :]
    rows[:, :-1] = target.reshape(panels, taps * inputs, WORD)
    return rows


def padded_to_words(values: Integers, fill: int) -> NDArray[np.int32]:
    """Return one int32 per channel, filled up to whole words."""
    padded = zeros((words_for(len(values)) * WORD,), np.int32)
    padded[:] = fill
    padded[: len(values)] = values
    return padded


def gain_digits(gain: Integers) -> NDArray[np.int32]:
    """Split gains into what the kernels add: int32 [6, C], masks.

    A gain is (4 + 2 a + b) << (8 c + 4 d + 2 e + f): rows are a to f, -1 where set.
    """
    padded = padded_to_words(gain, 4).astype(np.int64)
    exponent = np.zeros(len(padded), np.int64)
    while (large := padded >= 8).any():
        exponent += large
        padded = np.where(large, padded >> 1, padded)
    digits = [-((padded >> 1) & 1), -(padded & 1)]
    digits += [-((exponent >> place) & 1) for place in (3, 2, 1, 0)]
    return np.stack(digits).astype(np.int32)


# ------------------------------------------------------------------ sums of one pixel and panel


def _silence(rows):
    raise NotImplementedError  # compiled code only


@overload(_silence, inline="always")
def _silence_typed(rows):
    if rows.dtype == types.int8:
        return lambda rows: (splat_i16(0), splat_i16(0))
    return lambda rows: (splat_i32(0), splat_i32(0), splat_i32(0), splat_i32(0))


def _plus(x, y):
    raise NotImplementedError


@overload(_plus, inline="always")
def _plus_typed(x, y):
    if len(x) == 2:
        return lambda x, y: (x[0] + y[0], x[1] + y[1])
    return lambda x, y: (x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3])


def _minus(x, y):
    raise NotImplementedError


@overload(_minus, inline="always")
def _minus_typed(x, y):
    if len(x) == 2:
        return lambda x, y: (x[0] - y[0], x[1] - y[1])
    return lambda x, y: (x[0] - y[0], x[1] - y[1], x[2] - y[2], x[3] - y[3])


@njit(forceinline=True, error_model="numpy")
def _walk_i8(rows, base, events, j, end, even, odd):
    while j < end:
        pair = load_two(events, j)
        one = load_i8(rows, base + ((pair & 0xFFFF) << 6))
        two = load_i8(rows, base + ((pair >> 16) << 6))
        sums = as_i16(one + two)
        even = even + sums
        odd = odd + shift_right(sums, 8)
        j += 2
    return even, odd


@njit(forceinline=True, error_model="numpy")
def _walk_i16(rows, base, events, j, end, even0, odd0, even1, odd1):
    while j < end:
        pair = load_two(events, j)
        one = base + ((pair & 0xFFFF) << 6)
        two = base + ((pair >> 16) << 6)
        pair0 = as_i32(load_i16(rows, one) + load_i16(rows, two))
        pair1 = as_i32(load_i16(rows, one + 32) + load_i16(rows, two + 32))
        even0 = even0 + pair0
        odd0 = odd0 + shift_right(pair0, 16)
        even1 = even1 + pair1
        odd1 = odd1 + shift_right(pair1, 16)
        j += 2
    return even0, odd0, even1, odd1


def _walk(rows, base, events, start, borders, group, run):
    raise NotImplementedError


@overload(_walk, inline="always")
def _walk_typed(rows, base, events, start, borders, group, run):
    if rows.dtype == types.int8:

        def walk(rows, base, events, start, borders, group, run):
            j, end = start + peek(borders, group), start + peek(borders, group + 1)
            return _walk_i8(rows, base, events, j, end, run[0], run[1])

        return walk

    def walk_wide(rows, base, events, start, borders, group, run):
        j, end = start + peek(borders, group), start + peek(borders, group + 1)
        return _walk_i16(rows, base, events, j, end, run[0], run[1], run[2], run[3])

    return walk_wide


@njit(forceinline=True, error_model="numpy")
def _gather(rows, base, events, start, borders, first):
    # The sums of steps a, b, c, d; `run` is the sum of all events so far.
    a = b = c = d = run = _silence(rows)
    run = _walk(rows, base, events, start, borders, first, run)  # a
    b = _minus(b, run)
    run = _walk(rows, base, events, start, borders, first + 1, run)  # a b
    a = _plus(a, run)
    run = _walk(rows, base, events, start, borders, first + 2, run)  # b
    c = _minus(c, run)
    run = _walk(rows, base, events, start, borders, first + 3, run)  # b c
    a = _minus(a, run)
    run = _walk(rows, base, events, start, borders, first + 4, run)  # a b c
    b = _plus(b, run)
    run = _walk(rows, base, events, start, borders, first + 5, run)  # a c
    a = _plus(a, run)
    run = _walk(rows, base, events, start, borders, first + 6, run)  # c
    d = _minus(d, run)
    run = _walk(rows, base, events, start, borders, first + 7, run)  # c d
    a = _minus(a, run)
    run = _walk(rows, base, events, start, borders, first + 8, run)  # a c d
    b = _minus(b, run)
    run = _walk(rows, base, events, start, borders, first + 9, run)  # a b c d
    a = _plus(a, run)
    run = _walk(rows, base, events, start, borders, first + 10, run)  # b c d
    c = _plus(c, run)
    run = _walk(rows, base, events, start, borders, first + 11, run)  # b d
    a = _minus(a, run)
    run = _walk(rows, base, events, start, borders, first + 12, run)  # a b d
    b = _plus(b, run)
    run = _walk(rows, base, events, start, borders, first + 13, run)  # a d
    a = _plus(a, run)
    run = _walk(rows, base, events, start, borders, first + 14, run)  # d
    d = _plus(d, run)
    return a, b, c, d


def _widened(sums, count):
    raise NotImplementedError


@overload(_widened, inline="always")
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


@njit(forceinline=True, error_model="numpy")
def _fetch_ahead(rows, at, end):
    # Bring a pixel's share of the next panel near: its rows will be wanted in no order.
    while at < end:
        prefetch(rows, at)
        at += WORD


# ------------------------------------------------------------------ what follows the sums


@njit(forceinline=True)
def _in_one_word(b0, b1, b2, b3):
    return b0 | (b1 << np.uint64(16)) | (b2 << np.uint64(32)) | (b3 << np.uint64(48))


@njit(forceinline=True)
def _fire_64(i, theta, leak, c, v):
    v0, b0 = fire_16(i[0], v[0], load_i32(theta, c), leak)
    v1, b1 = fire_16(i[1], v[1], load_i32(theta, c + 16), leak)
    v2, b2 = fire_16(i[2], v[2], load_i32(theta, c + 32), leak)
    v3, b3 = fire_16(i[3], v[3], load_i32(theta, c + 48), leak)
    return _in_one_word(b0, b1, b2, b3), (v0, v1, v2, v3)


@njit(forceinline=True)
def _load_64(array, at):
    return (
        load_i32(array, at),
        load_i32(array, at + 16),
        load_i32(array, at + 32),
        load_i32(array, at + 48),
    )


@njit(forceinline=True)
def _store_64(array, at, x):
    store(array, at, x[0])
    store(array, at + 16, x[1])
    store(array, at + 32, x[2])
    store(array, at + 48, x[3])


@njit(forceinline=True)
def _silent_64():
    zero = splat_i32(0)
    return zero, zero, zero, zero


@njit(forceinline=True)
def _doubled(y, times, mask):
    # y << times where the mask is set. A `select` would become a shift by a different number of
    # places in each lane, which SSE can only do by multiplying.
    return differ(y, both(differ(y, shift_left(y, times)), mask))


@njit(forceinline=True)
def _current_16(x, digits, channels, bias, places, c):
    if digits is None:  # a layer that fires
        return shift_left(x, places) + load_i32(bias, c)
    # (x * gain + bias) >> places by shifts and additions; `digits` as `gain_digits` returns them.
    y = shift_left(x, 2)
    second = c + channels
    third = second + channels
    fourth = third + channels
    y = y + both(shift_left(x, 1), load_i32(digits, c)) + both(x, load_i32(digits, second))
    fifth = fourth + channels
    y = _doubled(y, 8, load_i32(digits, third))
    y = _doubled(y, 4, load_i32(digits, fourth))
    y = _doubled(y, 2, load_i32(digits, fifth))
    y = _doubled(y, 1, load_i32(digits, fifth + channels))
    return shift_right(y + load_i32(bias, c), places)


@njit(forceinline=True)
def _step_64(sums, count, digits, channels, bias, places, stream, to, begins, theta, leak, c, v):
    # One step of a pixel and panel: the current, into the stream if there is one, and the neurons.
    x = _widened(sums, count)
    i = (
        _current_16(x[0], digits, channels, bias, places, c),
        _current_16(x[1], digits, channels, bias, places, c + 16),
        _current_16(x[2], digits, channels, bias, places, c + 32),
        _current_16(x[3], digits, channels, bias, places, c + 48),
    )
    if stream is not None:
        if not begins:
            i = _plus(_load_64(stream, to), i)
        _store_64(stream, to, i)
    word = np.uint64(0)
    if theta is not None:
        word, v = _fire_64(i, theta, leak, c, v)
    return word, v


# ------------------------------------------------------------------ who does what

_PANEL, _LIST, _PIXELS, _BASE, _EVENTS, _AHEAD, _WORDS, _SITES, _STREAM = range(9)
"""Columns of a schedule: first channel, first list, lists; then flat places of the first row of
weights, list of events, rows to fetch, word, membrane and value of the stream."""
_COLUMNS = 16


@lru_cache(maxsize=4096)
def _schedule(
    panels: int, panel_size: int, room: int, lo: int, pixels: int, block: int
) -> tuple[NDArray[np.int64], int]:
    """Return the tasks [tasks, 16], and each pixel's share of a panel in elements.

    All products of sizes are made here, once, so that the kernels have none. Tasks that follow one
    another share a panel of weights.
    """
    first = np.arange(0, pixels, block)
    p, first = (axis.ravel() for axis in np.meshgrid(np.arange(panels), first, indexing="ij"))
    share = -(-panel_size // (pixels * WORD)) * WORD
    tasks = np.zeros((len(p), _COLUMNS), np.int64)
    tasks[:, _PANEL] = p * WORD
    tasks[:, _LIST] = first
    tasks[:, _PIXELS] = np.minimum(block, pixels - first)
    tasks[:, _BASE] = p * panel_size
    tasks[:, _EVENTS] = first * room
    # Behind the last panel there is nothing to fetch.
    tasks[:, _AHEAD] = np.where(p + 1 < panels, (p + 1) * panel_size + first * share, -1)
    tasks[:, _WORDS] = (lo + first) * GROUP * panels + p
    tasks[:, _SITES] = ((lo + first) * panels + p) * WORD
    tasks[:, _STREAM] = (lo + first) * GROUP * panels * WORD + p * WORD
    return tasks, share


def fire_layer(
    rows: Array, events: Array, borders: Array, counts: Array, bias: Array, theta: Array,
    leak: Array | None, up: int, v: Array | None, resume: bool, words: Words, lo: int, pixels: int,
    steps: int, block: int,
) -> None:  # fmt: skip
    """Add the events' rows, then fire: packed spikes into `words`.

    Args:
        rows: Weights as `lay_out` returns them.
        events: Lists of events of `pixels` pixels, as `events.cpu.list_events` fills them.
        borders: Their groups.
        counts: Their numbers.
        bias: int32 [64 panels].
        theta: int32 [64 panels].
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        up: current = (sum << up) + bias.
        v: Membranes, int32 [n, 64 panels], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        words: Filled at pixels lo ...: uint64 [n, 4, panels].
        lo: Where the pixels of the lists stand in `words`.
        pixels: How many there are.
        steps: How many of the four steps are real, 1 ... 4; the others stay silent.
        block: Pixels of a task.
    """
    panels, panel_size = words.shape[2], rows.shape[1] * WORD
    tasks, share = _schedule(panels, panel_size, events.shape[1], lo, pixels, block)
    _run_tasks(
        tasks, share, rows.reshape(-1), events.reshape(-1), events.shape[1], borders.reshape(-1),
        counts.reshape(-1), None, bias, up, None, True, theta, leak,
        None if v is None else v.reshape(-1), resume, words.reshape(-1), panels, steps,
    )  # fmt: skip


def stream_layer(
    rows: Array, events: Array, borders: Array, counts: Array, digits: Array, bias: Array,
    down: int, stream: Array, begins: bool, theta: Array | None, leak: Array | None,
    v: Array | None, resume: bool, words: Words, lo: int, pixels: int, steps: int, block: int,
) -> None:  # fmt: skip
    """Add the events' rows, put the current into the membrane stream, fire on the stream.

    Args:
        rows: Weights as `lay_out` returns them.
        events: Lists of events of `pixels` pixels, as `events.cpu.list_events` fills them.
        borders: Their groups.
        counts: Their numbers.
        digits: The gains, as `gain_digits` returns them.
        bias: int32 [64 panels].
        down: current = (sum * gain + bias) >> down.
        stream: int32 [n, 4, 64 panels], overwritten or added to.
        begins: Whether it is overwritten.
        theta: int32 [64 panels], or None where no neurons read the stream here.
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        v: Membranes, int32 [n, 64 panels], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        words: Filled at pixels lo ...: uint64 [n, 4, panels]; untouched where theta is None.
        lo: Where the pixels of the lists stand in `words` and `stream`.
        pixels: How many there are.
        steps: How many of the four steps are real, 1 ... 4; the others stay silent.
        block: Pixels of a task.
    """
    panels, panel_size = rows.shape[0], rows.shape[1] * WORD
    tasks, share = _schedule(panels, panel_size, events.shape[1], lo, pixels, block)
    _run_tasks(
        tasks, share, rows.reshape(-1), events.reshape(-1), events.shape[1], borders.reshape(-1),
        counts.reshape(-1), digits.reshape(-1), bias, down, stream.reshape(-1), begins, theta, leak,
        None if v is None else v.reshape(-1), resume, words.reshape(-1), panels, steps,
    )  # fmt: skip


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def _run_tasks(
    tasks, share, rows, events, room, borders, counts, digits, bias, places, stream, begins, theta,
    leak, v, resume, words, panels, steps,
):  # fmt: skip
    # A layer that fires has no digits and no stream; one before the head has no thresholds.
    flat_tasks = tasks.reshape(-1)
    word_1 = panels
    word_2 = word_1 + panels
    word_3 = word_2 + panels
    channels = panels << 6
    for task in prange(tasks.shape[0]):
        plan = task << 4
        c, i = peek(flat_tasks, plan + _PANEL), peek(flat_tasks, plan + _LIST)
        base = peek(flat_tasks, plan + _BASE)
        start = peek(flat_tasks, plan + _EVENTS)
        ahead = peek(flat_tasks, plan + _AHEAD)
        out = peek(flat_tasks, plan + _WORDS)
        at = peek(flat_tasks, plan + _SITES)
        to = peek(flat_tasks, plan + _STREAM)
        end = i + peek(flat_tasks, plan + _PIXELS)
        while i < end:
            if ahead >= 0:
                _fetch_ahead(rows, ahead, ahead + share)
                ahead += share
            s0, s1, s2, s3 = _gather(rows, base, events, start, borders, i << 4)
            n = i << 2
            u = _silent_64()
            if v is not None and resume:
                u = _load_64(v, at)
            w1 = w2 = w3 = np.uint64(0)
            w0, u = _step_64(
                s0, peek(counts, n), digits, channels, bias, places, stream, to, begins, theta,
                leak, c, u,
            )  # fmt: skip
            to += channels
            if steps > 1:
                w1, u = _step_64(
                    s1, peek(counts, n + 1), digits, channels, bias, places, stream, to, begins,
                    theta, leak, c, u,
                )  # fmt: skip
            to += channels
            if steps > 2:
                w2, u = _step_64(
                    s2, peek(counts, n + 2), digits, channels, bias, places, stream, to, begins,
                    theta, leak, c, u,
                )  # fmt: skip
            to += channels
            if steps > 3:
                w3, u = _step_64(
                    s3, peek(counts, n + 3), digits, channels, bias, places, stream, to, begins,
                    theta, leak, c, u,
                )  # fmt: skip
            to += channels
            if theta is not None:
                if v is not None:
                    _store_64(v, at, u)
                poke(words, out, w0)
                poke(words, out + word_1, w1)
                poke(words, out + word_2, w2)
                poke(words, out + word_3, w3)
            i += 1
            start += room
            at += channels
            out += word_3 + panels
