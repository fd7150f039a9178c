"""The first convolution: bytes are eight planes of spikes, each worth twice the one below."""

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.ops.neuron.reference import Integers
from spikedriven.engine.ops.synapse.reference import add_rows
from spikedriven.engine.plan import ImageStep


def image_current(x: NDArray[np.uint8], step: ImageStep) -> Integers:
    """Return the current of the image layer.

    Args:
        x: Pixels, [S, B, H, W, c].
        step: Its weights and biases.

    Returns:
        Current, [S, B, H, W, C].
    """
    total = sum(add_rows((x >> bit & 1).astype(np.bool_), step.weight) << bit for bit in range(8))
    height, width = x.shape[2:4]
    y, x_ = np.arange(height)[:, None], np.arange(width)
    touched = (y == 0) + 2 * (y == height - 1) + 4 * (x_ == 0) + 8 * (x_ == width - 1)
    return np.asarray(total + step.bias.astype(np.int64)[touched])
