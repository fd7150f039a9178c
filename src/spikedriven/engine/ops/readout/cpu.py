"""The last layer: one loop over the stream, then one row of weights per spike."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit


@njit(cache=True, error_model="numpy", nogil=True)
def sum_tokens(stream, tokens, sums):
    """Add up the stream over the tokens of an image.

    Args:
        stream: int32 [B * tokens, 4, C].
        tokens: Tokens of an image.
        sums: Filled, int64 [B, 4, C].
    """
    size = stream.shape[1] * stream.shape[2]
    source = stream.reshape(stream.shape[0], size)
    target = sums.reshape(sums.shape[0], size)
    for b in range(target.shape[0]):
        total = target[b]
        for c in range(size):
            total[c] = 0
        for n in range(b * tokens, (b + 1) * tokens):
            row = source[n]
            for c in range(size):
                total[c] += row[c]


@njit(cache=True, error_model="numpy", nogil=True)
def fire_sums(sums, theta, leak, v, spikes, steps):
    """Fire on the sums: the neuron of `ops/neuron/reference.py` in 64 bits.

    Args:
        sums: int64 [B, 4, C].
        theta: int64 [C], thresholds times tokens.
        leak: int64, 1/tau as shifts to the right.
        v: Membranes, int64 [B, C], read and written back.
        spikes: Filled, bool [B, 4, C].
        steps: How many of the four steps are real.
    """
    for b in range(sums.shape[0]):
        for t in range(steps):
            for c in range(theta.size):
                gap = sums[b, t, c] - v[b, c]
                share = np.int64(0)
                for digit in range(leak.size):
                    share += gap >> leak[digit]
                u = v[b, c] + share
                fired = u >= theta[c]
                spikes[b, t, c] = fired
                v[b, c] = 0 if fired else u


@njit(cache=True, error_model="numpy", nogil=True)
def add_classes(spikes, weight, bias, scores, steps):
    """Add the row of each channel that fired to the scores.

    Args:
        spikes: bool [B, 4, D].
        weight: int32 [D, K].
        bias: int32 [K].
        scores: Filled, int64 [4, B, K].
        steps: How many of the four steps are real.
    """
    for b in range(spikes.shape[0]):
        for t in range(steps):
            total = scores[t, b]
            for k in range(bias.size):
                total[k] = bias[k]
            for c in range(weight.shape[0]):
                if spikes[b, t, c]:
                    row = weight[c]
                    for k in range(bias.size):
                        total[k] += row[k]
