"""The image layer: sums of three weights looked up by three bits of a row of pixels.

For each input channel and each of the kernel's rows, the eight possible sums of its three weights
are made beforehand. A pixel's current is then, from the highest plane to the lowest, doubled and
added to: twice the total plus the sums that the plane's bits select.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from spikedriven.core.kernels import inlined, kernel, parallel_kernel
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


@inlined
def _current_32(table, q, outputs, offsets, begin, planes, channels, line, frames, sums):
    # From the highest plane to the lowest: twice the total, plus what the plane's bits select.
    low = high = splat_i32(0)
    for plane in range(planes.size):
        at_plane = begin + peek(planes, plane)
        total = splat_i16(0)
        for channel in range(channels):
            at = at_plane + peek(frames, channel)
            base = q + peek(sums, channel)
            for _ in range(3):
                total = total + load_i16(table, base + peek(offsets, at))
                at += line
                base += outputs << 3
        low = low + low + low_half(total)
        high = high + high + high_half(total)
    return low, high


@inlined
def _current_64(table, q, outputs, offsets, begin, planes, channels, line, frames, sums):
    # The same for 64 channels, whose places are looked up once.
    low0 = high0 = low1 = high1 = splat_i32(0)
    for plane in range(planes.size):
        at_plane = begin + peek(planes, plane)
        total0 = total1 = splat_i16(0)
        for channel in range(channels):
            at = at_plane + peek(frames, channel)
            base = q + peek(sums, channel)
            for _ in range(3):
                place = base + peek(offsets, at)
                total0 = total0 + load_i16(table, place)
                total1 = total1 + load_i16(table, place + 32)
                at += line
                base += outputs << 3
        low0 = low0 + low0 + low_half(total0)
        high0 = high0 + high0 + high_half(total0)
        low1 = low1 + low1 + low_half(total1)
        high1 = high1 + high1 + high_half(total1)
    return (low0, high0), (low1, high1)


@inlined
def _current_96(table, q, outputs, offsets, begin, planes, channels, line, frames, sums):
    # The same for 96.
    low0 = high0 = low1 = high1 = low2 = high2 = splat_i32(0)
    for plane in range(planes.size):
        at_plane = begin + peek(planes, plane)
        total0 = total1 = total2 = splat_i16(0)
        for channel in range(channels):
            at = at_plane + peek(frames, channel)
            base = q + peek(sums, channel)
            for _ in range(3):
                place = base + peek(offsets, at)
                total0 = total0 + load_i16(table, place)
                total1 = total1 + load_i16(table, place + 32)
                total2 = total2 + load_i16(table, place + 64)
                at += line
                base += outputs << 3
        low0 = low0 + low0 + low_half(total0)
        high0 = high0 + high0 + high_half(total0)
        low1 = low1 + low1 + low_half(total1)
        high1 = high1 + high1 + high_half(total1)
        low2 = low2 + low2 + low_half(total2)
        high2 = high2 + high2 + high_half(total2)
    return (low0, high0), (low1, high1), (low2, high2)


@inlined
def _fire_32(current, bias, edge, theta, q, leak, v):
    v0, low = fire_16(current[0] + load_i32(bias, edge + q), v[0], load_i32(theta, q), leak)
    v1, high = fire_16(
        current[1] + load_i32(bias, edge + q + 16), v[1], load_i32(theta, q + 16), leak
    )
    return low | (high << np.uint64(16)), (v0, v1)


@inlined
def _membranes(v, resume, at):
    # None, or the membranes to resume from.
    zero = splat_i32(0)
    if v is not None and resume:
        return load_i32(v, at), load_i32(v, at + 16)
    return zero, zero


@inlined
def _keep(v, at, membranes):
    if v is not None:
        store(v, at, membranes[0])
        store(v, at + 16, membranes[1])


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
            while q + 96 <= outputs:
                v0 = _membranes(v, resume, site + q)
                v1 = _membranes(v, resume, site + q + 32)
                v2 = _membranes(v, resume, site + q + 64)
                i0 = i1 = i2 = v0
                t = 0
                while True:
                    if t == 0 or moves:
                        at = begin + peek(moments, t)
                        i0, i1, i2 = _current_96(
                            table, q, outputs, offsets, at, planes, channels, line, frames, sums
                        )
                    w0, v0 = _fire_32(i0, bias, edge, theta, q, leak, v0)
                    w1, v1 = _fire_32(i1, bias, edge, theta, q + 32, leak, v1)
                    w2, v2 = _fire_32(i2, bias, edge, theta, q + 64, leak, v2)
                    out = word + (q >> 5) + peek(places, t)
                    poke(halves, out, w0)
                    poke(halves, out + 1, w1)
                    poke(halves, out + 2, w2)
                    t += 1
                    if t >= steps:
                        break
                _keep(v, site + q, v0)
                _keep(v, site + q + 32, v1)
                _keep(v, site + q + 64, v2)
                q += 96
            while q + 64 <= outputs:
                v0 = _membranes(v, resume, site + q)
                v1 = _membranes(v, resume, site + q + 32)
                i0 = i1 = v0
                t = 0
                while True:
                    if t == 0 or moves:
                        at = begin + peek(moments, t)
                        i0, i1 = _current_64(
                            table, q, outputs, offsets, at, planes, channels, line, frames, sums
                        )
                    w0, v0 = _fire_32(i0, bias, edge, theta, q, leak, v0)
                    w1, v1 = _fire_32(i1, bias, edge, theta, q + 32, leak, v1)
                    out = word + (q >> 5) + peek(places, t)
                    poke(halves, out, w0)
                    poke(halves, out + 1, w1)
                    t += 1
                    if t >= steps:
                        break
                _keep(v, site + q, v0)
                _keep(v, site + q + 32, v1)
                q += 64
            while q < outputs:
                v0 = i0 = _membranes(v, resume, site + q)
                t = 0
                while True:
                    if t == 0 or moves:
                        at = begin + peek(moments, t)
                        i0 = _current_32(
                            table, q, outputs, offsets, at, planes, channels, line, frames, sums
                        )
                    w0, v0 = _fire_32(i0, bias, edge, theta, q, leak, v0)
                    poke(halves, word + (q >> 5) + peek(places, t), w0)
                    t += 1
                    if t >= steps:
                        break
                _keep(v, site + q, v0)
                q += 32
            begin += 1
            site += outputs
            word += words << 2
