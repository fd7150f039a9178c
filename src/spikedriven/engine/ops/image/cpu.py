"""The image layer: sums of three weights looked up by three bits of a row of pixels.

For each input channel and each of the kernel's rows, the eight possible sums of its three weights
are made beforehand. A pixel's current is then, from the highest plane to the lowest, doubled and
added to: twice the total plus the sums that the plane's bits select.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload
from numpy.typing import NDArray

from spikedriven.core.kernels import INLINED, inlined, kernel, parallel_kernel
from spikedriven.core.memory import zeros
from spikedriven.core.simd import (
    high_half,
    load_i16,
    load_i32,
    low_half,
    peek,
    poke,
    splat_i16,
    splat_i32,
    store,
)
from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.plan import Integers
from spikedriven.engine.schedule import ROW, flat

Array = NDArray[Any]

UNIT = 32
"""Output channels handled together."""


def lay_out(weight: Integers) -> NDArray[np.int16]:
    """Return the sums of three neighbouring weights for all patterns of three bits.

    Args:
        weight: int16 [3, 3, c, C].

    Returns:
        int16 [c * 3, 8, C filled up to 32]: (channel, kernel row), pattern of (left, middle,
        right) as bits 0, 1, 2.
    """
    channels, outputs = weight.shape[2:]
    table = zeros((channels, 3, 8, -(-outputs // UNIT) * UNIT), np.int16)
    for pattern in range(8):
        chosen = [dx for dx in range(3) if pattern >> dx & 1]
        table[:, :, pattern, :outputs] = weight[:, chosen].sum(axis=1).transpose(1, 0, 2)
    return table.reshape(channels * 3, 8, -1)


def plane_offsets(images: NDArray[np.uint8], outputs: int, offsets: NDArray[np.uint16]) -> None:
    """Note, for each plane and pixel, where the sum of its row of three weights stands.

    Args:
        images: uint8 [m, c, H, W].
        outputs: Output channels of the table, at most 8191.
        offsets: Filled: uint16 [m, c, H + 2, 8, W]: `outputs` times the pattern of bits of the
            pixel and its two neighbours in the row; 0 in the rows above and below the image.
    """
    m, channels, height, width = images.shape
    offsets[:, :, 0] = offsets[:, :, -1] = 0
    frame = np.arange(m * channels).repeat(height)
    y = np.tile(np.arange(height), m * channels)
    lines = flat([(frame * height + y) * width, (frame * (height + 2) + y + 1) * 8 * width])
    _note_lines(lines, images.reshape(-1), width, outputs, offsets.reshape(-1))


@kernel
def _note_lines(lines, pixels, width, outputs, offsets):
    # On one thread: it is little, and to compile it for several takes a second.
    left, middle = np.uint16(outputs), np.uint16(outputs + outputs)
    right = np.uint16(middle + middle)
    for line in range(lines.size >> ROW):
        source, at = peek(lines, line << ROW), peek(lines, (line << ROW) + 1)
        row = pixels[source : source + width]
        for bit in range(8):
            out = offsets[at : at + width]
            for x in range(width):
                out[x] = middle if (row[x] >> bit) & 1 else 0
            for x in range(1, width):
                out[x] += left if (row[x - 1] >> bit) & 1 else 0
            for x in range(width - 1):
                out[x] += right if (row[x + 1] >> bit) & 1 else 0
            at += width


# One to three units of 32 channels are walked together, as tuples of that length: the places of
# their sums are looked up once.


def _more(totals, table, place):
    raise NotImplementedError  # compiled code only


@overload(_more, jit_options=INLINED)
def _more_typed(totals, table, place):
    # The sums that stand at one place, added to each unit's.
    if not len(totals):
        return lambda totals, table, place: ()
    return lambda totals, table, place: (
        (totals[0] + load_i16(table, place), *_more(totals[1:], table, place + 32))
    )


def _doubled(sums, totals):
    raise NotImplementedError


@overload(_doubled, jit_options=INLINED)
def _doubled_typed(sums, totals):
    # Twice the sums, and a plane's totals: low and high half of each unit.
    if not len(sums):
        return lambda sums, totals: ()
    return lambda sums, totals: (
        (
            (
                sums[0][0] + sums[0][0] + low_half(totals[0]),
                sums[0][1] + sums[0][1] + high_half(totals[0]),
            ),
            *_doubled(sums[1:], totals[1:]),
        )
    )


def _nothing(sums):
    raise NotImplementedError


@overload(_nothing, jit_options=INLINED)
def _nothing_typed(sums):
    if not len(sums):
        return lambda sums: ()
    return lambda sums: (splat_i16(0), *_nothing(sums[1:]))


@inlined
def _currents(sums, table, q, outputs, offsets, begin, planes, channels, line, frames, places):
    # From the highest plane to the lowest: twice the total, plus what the plane's bits select.
    for plane in range(planes.size):
        at_plane = begin + peek(planes, plane)
        totals = _nothing(sums)
        for channel in range(channels):
            at = at_plane + peek(frames, channel)
            base = q + peek(places, channel)
            for _ in range(3):
                totals = _more(totals, table, base + peek(offsets, at))
                at += line
                base += outputs << 3
        sums = _doubled(sums, totals)
    return sums


def _advanced(currents, bias, edge, theta, q, leak, v, halves, out):
    raise NotImplementedError


@overload(_advanced, jit_options=INLINED)
def _advanced_typed(currents, bias, edge, theta, q, leak, v, halves, out):
    # A step of each unit's neurons: their spikes are written, their membranes returned.
    if not len(currents):
        return lambda currents, bias, edge, theta, q, leak, v, halves, out: ()

    def advanced(currents, bias, edge, theta, q, leak, v, halves, out):
        at = edge + q
        low, high = currents[0][0] + load_i32(bias, at), currents[0][1] + load_i32(bias, at + 16)
        v0, bits = fire_16(low, v[0][0], load_i32(theta, q), leak)
        v1, above = fire_16(high, v[0][1], load_i32(theta, q + 16), leak)
        poke(halves, out, bits | (above << np.uint64(16)))
        others = _advanced(currents[1:], bias, edge, theta, q + 32, leak, v[1:], halves, out + 1)
        return ((v0, v1), *others)

    return advanced


def _resumed(rest, v, resume, at):
    raise NotImplementedError


@overload(_resumed, jit_options=INLINED)
def _resumed_typed(rest, v, resume, at):
    # The membranes to resume from, or those at rest.
    if not len(rest):
        return lambda rest, v, resume, at: ()

    def resumed(rest, v, resume, at):
        low, high = rest[0]
        if v is not None and resume:
            low, high = load_i32(v, at), load_i32(v, at + 16)
        return ((low, high), *_resumed(rest[1:], v, resume, at + 32))

    return resumed


def _keep(v, at, membranes):
    raise NotImplementedError


@overload(_keep, jit_options=INLINED)
def _keep_typed(v, at, membranes):
    if isinstance(v, types.NoneType) or not len(membranes):
        return lambda v, at, membranes: None

    def keep(v, at, membranes):
        store(v, at, membranes[0][0])
        store(v, at + 16, membranes[0][1])
        _keep(v, at + 32, membranes[1:])

    return keep


@inlined
def _pixel(
    rest, table, bias, edge, theta, q, leak, v, site, resume, outputs, offsets, begin, planes,
    channels, line, frames, sums, moments, moves, steps, halves, word, places,
):  # fmt: skip
    # All steps of one pixel, for as many units from channel q on as `rest` has.
    u = currents = _resumed(rest, v, resume, site + q)
    t = 0
    while True:
        if t == 0 or moves:
            at = begin + peek(moments, t)
            currents = _currents(
                rest, table, q, outputs, offsets, at, planes, channels, line, frames, sums
            )
        out = word + (q >> 5) + peek(places, t)
        u = _advanced(currents, bias, edge, theta, q, leak, u, halves, out)
        t += 1
        if t >= steps:
            break
    _keep(v, site + q, u)


def fire_image(
    offsets: Array, table: Array, bias: Array, theta: Array, leak: Array | None, v: Array | None,
    resume: bool, images: int, steps: int, halves: NDArray[np.uint32],
) -> None:  # fmt: skip
    """Run the image layer and its neurons.

    Args:
        offsets: uint16 [S * B, c, H + 2, 8, W] as `plane_offsets` fills it; S = steps, or 1 for
            images that stay the same: their current is then computed once.
        table: int16 [3 c, 8, C] as `lay_out` returns it.
        bias: int32 [16, C].
        theta: int32 [C].
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        v: Membranes, int32 [B * H * W, C], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        images: B.
        steps: T.
        halves: Filled: packed spikes as uint32 [ceil(T / 4), B * H * W, 4, 2 P].
    """
    channels, height, width = offsets.shape[1], offsets.shape[2] - 2, offsets.shape[4]
    outputs = table.shape[2]
    sites, _, words = halves.shape[1:]
    line = 8 * width
    frame = channels * (height + 2) * line
    row = np.arange(images * height)
    y, pixel = row % height, row * width
    lines = flat(
        [
            row // height * frame + y * line + 7 * width,  # the highest plane of the row above
            pixel * outputs,
            pixel * 4 * words,
            ((y == 0) + 2 * (y == height - 1)) * outputs,
        ]
    )
    channel, step = np.arange(channels), np.arange(steps)
    # Told, not known: a loop of known length would be unrolled, which takes a second.
    planes = -np.arange(8) * width
    _fire_lines(
        lines, offsets.reshape(-1), table.reshape(-1), bias.reshape(-1), theta, leak,
        None if v is None else v.reshape(-1), resume, planes, channels, width, outputs, line,
        channel * (height + 2) * line, channel * 24 * outputs, step * images * frame,
        len(offsets) > images, steps,
        halves.reshape(-1), words, (step // 4 * sites * 4 + step % 4) * words,
    )  # fmt: skip


@parallel_kernel
def _fire_lines(
    lines, offsets, table, bias, theta, leak, v, resume, planes, channels, width, outputs, line,
    frames, sums, moments, moves, steps, halves, words, places,
):  # fmt: skip
    # Ways to: `planes` from the highest plane to the others, `frames` and `sums` of the input
    # channels, `moments` of the steps' images, `places` of their words. Where nothing moves, the
    # current stays too. There is one step at least: a loop over none would be a case of its own.
    for row in prange(lines.size >> ROW):
        plan = np.int64(row) << ROW
        begin, site = peek(lines, plan), peek(lines, plan + 1)
        word, edge_y = peek(lines, plan + 2), peek(lines, plan + 3)
        for x in range(width):
            edge = edge_y
            if x == 0:
                edge += outputs << 2
            if x == width - 1:
                edge += outputs << 3
            q = np.int64(0)  # the same type at every call
            zero = splat_i32(0), splat_i32(0)
            while q + 96 <= outputs:
                _pixel(
                    (zero, zero, zero), table, bias, edge, theta, q, leak, v, site, resume, outputs,
                    offsets, begin, planes, channels, line, frames, sums, moments, moves, steps,
                    halves, word, places,
                )  # fmt: skip
                q += 96
            while q + 64 <= outputs:
                _pixel(
                    (zero, zero), table, bias, edge, theta, q, leak, v, site, resume, outputs,
                    offsets, begin, planes, channels, line, frames, sums, moments, moves, steps,
                    halves, word, places,
                )  # fmt: skip
                q += 64
            while q < outputs:
                _pixel(
                    (zero,), table, bias, edge, theta, q, leak, v, site, resume, outputs,
                    offsets, begin, planes, channels, line, frames, sums, moments, moves, steps,
                    halves, word, places,
                )  # fmt: skip
                q += 32
            begin += 1
            site += outputs
            word += words << 2
