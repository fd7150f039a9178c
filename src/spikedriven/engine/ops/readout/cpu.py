"""The last layer: one loop over the stream, then one row of weights per spike."""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedriven.core.kernels import kernel
from spikedriven.core.simd import peek
from spikedriven.engine.bits import GROUP, WORD
from spikedriven.engine.schedule import ROW, strides

Array = NDArray[Any]


def sum_tokens(stream: Array, tokens: int, sums: Array) -> None:
    """Add up the stream over the tokens of an image.

    Args:
        stream: int32 [panels, B * tokens, 4, 64].
        tokens: Tokens of an image.
        sums: Filled, int64 [B, 4, 64 panels].
    """
    panels, sites = stream.shape[:2]
    sums[...] = 0
    places = strides(panels, WORD, sites * GROUP * WORD)
    _sum(places, stream.reshape(-1), tokens, panels * WORD, sums.reshape(-1))


@kernel
def _sum(places, stream, tokens, channels, sums):
    for panel in range(places.size >> ROW):
        row, at = peek(places, panel << ROW), peek(places, (panel << ROW) + 1)
        while row < sums.size:  # an image
            for _ in range(tokens):
                step = row
                for _ in range(4):
                    values, total = stream[at : at + 64], sums[step : step + 64]
                    for c in range(64):
                        total[c] += values[c]
                    at += 64
                    step += channels
            row += channels << 2


def fire_sums(sums: Array, theta: Array, leak: Array, v: Array, spikes: Array, steps: int) -> None:
    """Fire on the sums: the neuron of `ops/neuron/reference.py` in 64 bits.

    Args:
        sums: int64 [B, 4, C].
        theta: int64 [C], thresholds times tokens.
        leak: int64, 1/tau as shifts to the right.
        v: Membranes, int64 [B, D], read and written back; D is at most C.
        spikes: Filled, bool [B, 4, D].
        steps: How many of the four steps are real.
    """
    _fire(
        sums.reshape(-1), sums.shape[2], theta, leak, v.reshape(-1), spikes.reshape(-1), v.shape[1],
        steps,
    )  # fmt: skip


@kernel
def _fire(sums, padded, theta, leak, v, spikes, channels, steps):
    at = out = 0
    for image in range(0, v.size, channels):
        membrane = v[image : image + channels]
        for t in range(4):
            if t < steps:
                total, fired = sums[at : at + padded], spikes[out : out + channels]
                for c in range(channels):
                    gap = total[c] - membrane[c]
                    share = np.int64(0)
                    for digit in range(leak.size):
                        share += gap >> leak[digit]
                    u = membrane[c] + share
                    fired[c] = u >= theta[c]
                    membrane[c] = 0 if fired[c] else u
            at += padded
            out += channels


def add_classes(spikes: Array, weight: Array, bias: Array, scores: Array, steps: int) -> None:
    """Add the row of each channel that fired to the scores; a row is read once for all steps.

    Args:
        spikes: bool [B, 4, D].
        weight: int32 [D, K].
        bias: int32 [K].
        scores: Filled, int64 [4, B, K].
        steps: How many of the four steps are real.
    """
    total = np.empty((steps, len(bias)), np.int64)
    rows = weight.reshape(-1)
    for b in range(len(spikes)):
        total[...] = bias
        _add(spikes[b].reshape(-1), rows, total.reshape(-1), len(bias), steps)
        scores[:steps, b] = total


@kernel
def _add(spikes, weight, total, classes, steps):
    channels = spikes.size >> 2
    at = 0
    for c in range(channels):
        row = weight[at : at + classes]
        spike = c
        out = 0
        for _ in range(steps):
            if spikes[spike]:
                score = total[out : out + classes]
                for k in range(classes):
                    score[k] += row[k]
            spike += channels
            out += classes
        at += classes
