"""Spike-driven attention on packed spikes: 64 channels per AND."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit

from spikedriven.engine.bits import WORD
from spikedriven.engine.simd import lowest_bit


@njit(cache=True, error_model="numpy", nogil=True)
def agree(k, v, tokens, gate):
    """OR over an image's tokens of (key AND value).

    Args:
        k: Key, uint64 [B * tokens, 4, P].
        v: Value, of the same shape.
        tokens: Tokens of an image.
        gate: Filled, uint64 [B, 4, P].
    """
    size = k.shape[1] * k.shape[2]
    key, value = k.reshape(k.shape[0], size), v.reshape(k.shape[0], size)
    flat = gate.reshape(gate.shape[0], size)
    for b in range(gate.shape[0]):
        for p in range(size):
            flat[b, p] = 0
        for n in range(b * tokens, (b + 1) * tokens):
            for p in range(size):
                flat[b, p] |= key[n, p] & value[n, p]


@njit(cache=True, error_model="numpy", nogil=True)
def count_agreements(k, v, tokens, counts):
    """Count, per channel, the tokens at which key and value both fire; one step per event.

    Args:
        k: Key, uint64 [B * tokens, 4, P].
        v: Value, of the same shape.
        tokens: Tokens of an image.
        counts: Filled, int64 [B, 4, 64 P].
    """
    one = np.uint64(1)
    for b in range(counts.shape[0]):
        for t in range(4):
            for c in range(counts.shape[2]):
                counts[b, t, c] = 0
    for n in range(k.shape[0]):
        for t in range(4):
            for p in range(k.shape[2]):
                both = k[n, t, p] & v[n, t, p]
                while both:
                    counts[n // tokens, t, p * WORD + lowest_bit(both)] += 1
                    both &= both - one


@njit(cache=True, error_model="numpy", nogil=True)
def mask(q, gate, tokens, out):
    """Keep the query where its channel's gate is open.

    Args:
        q: Query, uint64 [B * tokens, 4, P].
        gate: uint64 [B, 4, P].
        tokens: Tokens of an image.
        out: Filled, like `q`.
    """
    size = q.shape[1] * q.shape[2]
    query, flat = q.reshape(q.shape[0], size), gate.reshape(gate.shape[0], size)
    masked = out.reshape(q.shape[0], size)
    for n in range(q.shape[0]):
        b = n // tokens
        for p in range(size):
            masked[n, p] = query[n, p] & flat[b, p]
