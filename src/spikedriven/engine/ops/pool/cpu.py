"""Pooling of packed spikes (64 channels per OR) and of membranes (16 per compare)."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit, prange

from spikedriven.engine.bits import WORD
from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.simd import at_least, load_i32, select, splat_i32, store


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def pool_spikes(words, height, width, stride, out):
    """OR over 3x3 pixels.

    Args:
        words: uint64 [B * height * width, 4, P].
        height: Pixels along y.
        width: Pixels along x.
        stride: 2 to halve the image (both sides even), 1 to dilate it.
        out: Filled, uint64 [B * (height / stride) * (width / stride), 4, P].
    """
    size = words.shape[1] * words.shape[2]
    source = words.reshape(words.shape[0], size)
    target = out.reshape(out.shape[0], size)
    high, wide = height // stride, width // stride
    for line in prange(out.shape[0] // wide):
        b, y = line // high, line % high
        top = max(0, stride * y - 1)
        bottom = min(height - 1, stride * y + 1)
        for x in range(wide):
            at = line * wide + x
            for q in range(size):
                target[at, q] = 0
            for yy in range(top, bottom + 1):
                for xx in range(max(0, stride * x - 1), min(width - 1, stride * x + 1) + 1):
                    seen = (b * height + yy) * width + xx
                    for q in range(size):
                        target[at, q] |= source[seen, q]


@njit(parallel=True, cache=True, error_model="numpy", nogil=True)
def pool_membranes(
    currents, height, width, stream, theta, leak, v, resume, words, steps
):  # fmt: skip
    """Take the maximum over 3x3 pixels at every second one: the stream begins; fire on it.

    Args:
        currents: int32 [B * height * width, 4, C], C a multiple of 64.
        height: Pixels along y, even.
        width: Pixels along x, even.
        stream: Filled, int32 [B * height / 2 * width / 2, 4, C].
        theta: int32 [C].
        leak: None for tau = 2, else int64: 1/tau as shifts to the right.
        v: Membranes, int32 [n, C], written back; None to begin at rest and forget them.
        resume: Read the membranes from `v` first; else begin at rest.
        words: Filled, uint64 [n, 4, C / 64].
        steps: How many of the four steps are real; the others stay silent.
    """
    channels = currents.shape[2]
    flat = currents.reshape(-1)
    flat_stream = stream.reshape(-1)
    high, wide = height // 2, width // 2
    for line in prange(stream.shape[0] // wide):
        b, y = line // high, line % high
        top = max(0, 2 * y - 1)
        for x in range(wide):
            at = line * wide + x
            for t in range(4):
                for p in range(channels // WORD):
                    words[at, t, p] = 0
            for c in range(0, channels, 16):
                u = splat_i32(0)
                if v is not None and resume:
                    u = load_i32(v.reshape(-1), at * channels + c)
                for t in range(steps):
                    here = ((b * height + 2 * y) * width + 2 * x) * 4 + t
                    most = load_i32(flat, here * channels + c)
                    for yy in range(top, 2 * y + 2):
                        for xx in range(max(0, 2 * x - 1), 2 * x + 2):
                            seen = ((b * height + yy) * width + xx) * 4 + t
                            other = load_i32(flat, seen * channels + c)
                            most = select(at_least(most, other), most, other)
                    store(flat_stream, (at * 4 + t) * channels + c, most)
                    u, bits = fire_16(most, u, load_i32(theta, c), leak)
                    words[at, t, c // WORD] |= bits << np.uint64(c % WORD)
                if v is not None:
                    store(v.reshape(-1), at * channels + c, u)


@njit(cache=True, error_model="numpy", nogil=True)
def dilate_channels(words, first, last):
    """Dilate by one channel to either side within its head, in place.

    Args:
        words: uint64 [..., P], flattened to [m, P].
        first: uint64 [P], the bits of the heads' first channels.
        last: uint64 [P], the bits of the heads' last channels.
    """
    one, top = np.uint64(1), np.uint64(63)
    for i in range(words.shape[0]):
        before = np.uint64(0)  # the word below, undilated
        for p in range(words.shape[1]):
            word = words[i, p]
            above = np.uint64(0)
            if p + 1 < words.shape[1]:
                above = words[i, p + 1] & ~first[p + 1]
            up = (word & ~last[p]) << one
            if p > 0:
                up |= (before & ~last[p - 1]) >> top
            down = ((word & ~first[p]) >> one) | (above << top)
            words[i, p] = word | up | down
            before = word


@njit(cache=True, error_model="numpy", nogil=True)
def dilate_tokens(words, tokens, out):
    """OR over each token and its two neighbours in raster order, image by image.

    Args:
        words: uint64 [B * tokens, 4, P].
        tokens: Tokens of an image.
        out: Filled, of the same shape.
    """
    for n in range(words.shape[0]):
        place = n % tokens
        for t in range(words.shape[1]):
            for p in range(words.shape[2]):
                word = words[n, t, p]
                if place > 0:
                    word |= words[n - 1, t, p]
                if place < tokens - 1:
                    word |= words[n + 1, t, p]
                out[n, t, p] = word
