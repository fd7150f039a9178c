"""The image layer: sums of three weights looked up by three bits of a row of pixels.

For each input channel and each of the kernel's rows, the eight possible sums of its three weights
are made beforehand. A pixel's current is then, from the highest plane to the lowest, doubled and
added to: twice the total plus the sums that the plane's bits select.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.plan import Integers
from spikedriven.engine.simd import (
    high_half,
    load_i16,
    load_i32,
    low_half,
    splat_i16,
    splat_i32,
    store,
)

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
    table = np.zeros((channels, 3, 8, -(-outputs // UNIT) * UNIT), np.int16)
    for pattern in range(8):
        chosen = [dx for dx in range(3) if pattern >> dx & 1]
        table[:, :, pattern, :outputs] = weight[:, chosen].sum(axis=1).transpose(1, 0, 2)
    return table.reshape(channels * 3, 8, -1)


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def plane_patterns(images, patterns):
    """Collect, for each plane and pixel, the bits of the pixel and its two neighbours in the row.

    Args:
        images: uint8 [m, c, H, W].
        patterns: Filled: uint8 [m, c, H + 2, 8, W], 0 in the rows above and below the image.
    """
    m, channels, height, width = images.shape
    for line in prange(m * channels * (height + 2)):
        i, c, y = line // (channels * (height + 2)), (line // (height + 2)) % channels, 0
        y = line % (height + 2)
        for bit in range(8):
            out = patterns[i, c, y, bit]
            if y == 0 or y == height + 1:
                for x in range(width):
                    out[x] = 0
                continue
            row = images[i, c, y - 1]
            for x in range(width):
                out[x] = ((row[x] >> bit) & 1) << 1
            for x in range(1, width):
                out[x] |= (row[x - 1] >> bit) & 1
            for x in range(width - 1):
                out[x] |= ((row[x + 1] >> bit) & 1) << 2


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def fire_image(patterns, table, bias, theta, leak, v, resume, images, steps, halves):
    """Run the image layer and its neurons.

    Args:
        patterns: uint8 [S * B, c, H + 2, 8, W] as `plane_patterns` fills them; S = steps, or 1 for
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
    channels, height, width = patterns.shape[1], patterns.shape[2] - 2, patterns.shape[4]
    outputs = table.shape[2]
    flat_table, flat_bias = table.reshape(-1), bias.reshape(-1)
    moving = patterns.shape[0] > images
    for line in prange(images * height):
        b, y = line // height, line % height
        for x in range(width):
            pixel = line * width + x
            edge = 0
            if y == 0:
                edge += 1
            if y == height - 1:
                edge += 2
            if x == 0:
                edge += 4
            if x == width - 1:
                edge += 8
            for q in range(0, outputs, 32):
                v0, v1 = splat_i32(0), splat_i32(0)
                i0, i1 = v0, v1
                if v is not None and resume:
                    v0 = load_i32(v.reshape(-1), pixel * outputs + q)
                    v1 = load_i32(v.reshape(-1), pixel * outputs + q + 16)
                for t in range(steps):
                    if moving or t == 0:
                        image = t * images + b
                        i0, i1 = splat_i32(0), splat_i32(0)
                        for down in range(8):
                            bit = 7 - down
                            total = splat_i16(0)
                            for c in range(channels):
                                for row in range(3):
                                    pattern = np.int64(patterns[image, c, y + row, bit, x])
                                    place = (c * 3 + row) * 8 + pattern
                                    total = total + load_i16(flat_table, place * outputs + q)
                            i0 = i0 + i0 + low_half(total)
                            i1 = i1 + i1 + high_half(total)
                        i0 = i0 + load_i32(flat_bias, edge * outputs + q)
                        i1 = i1 + load_i32(flat_bias, edge * outputs + q + 16)
                    v0, low = fire_16(i0, v0, load_i32(theta, q), leak)
                    v1, high = fire_16(i1, v1, load_i32(theta, q + 16), leak)
                    halves[t // 4, pixel, t % 4, q // 32] = low | (high << np.uint64(16))
                if v is not None:
                    store(v.reshape(-1), pixel * outputs + q, v0)
                    store(v.reshape(-1), pixel * outputs + q + 16, v1)
