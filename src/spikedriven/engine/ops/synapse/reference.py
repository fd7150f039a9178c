"""Spikes through weights: add up the weights of the inputs that fired."""

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.bits import Spikes
from spikedriven.engine.plan import FireStep, Integers, StreamStep


def add_rows(s: Spikes, weight: Integers) -> NDArray[np.int64]:
    """Convolve spikes, at stride 1 and with a border of silence.

    Args:
        s: Spikes, [T, B, H, W, C].
        weight: Whole numbers, [k, k, C, D], k odd.

    Returns:
        Sums, [T, B, H, W, D].
    """
    kernel = len(weight)
    height, width = s.shape[2:4]
    pad = kernel // 2
    # Whole numbers below 2**53, which doubles add exactly, and fast.
    framed = np.pad(s, [(0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)]).astype(np.float64)
    total = np.zeros((*s.shape[:4], weight.shape[-1]))
    for dy in range(kernel):
        for dx in range(kernel):
            seen = framed[:, :, dy : dy + height, dx : dx + width]
            total += seen @ weight[dy, dx].astype(np.float64)
    return total.astype(np.int64)


def fire_current(s: Spikes, step: FireStep) -> NDArray[np.int64]:
    """Return the current of a layer that fires."""
    return (add_rows(s, step.weight) << step.up) + step.bias


def stream_current(s: Spikes, step: StreamStep) -> NDArray[np.int64]:
    """Return the current of a layer that feeds the membrane stream."""
    return (add_rows(s, step.weight) * step.gain + step.bias) >> step.down
