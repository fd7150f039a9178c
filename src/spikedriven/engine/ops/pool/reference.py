"""Pooling over 3x3 windows at every second pixel, and dilation at every pixel."""

from typing import TypeVar

import numpy as np

from spikedriven.engine.bits import Spikes
from spikedriven.engine.ops.neuron.reference import Integers

T = TypeVar("T", Spikes, Integers)


def pool(x: T, *, stride: int = 2) -> T:
    """Take the maximum over 3x3 pixels: of spikes that is OR, of membranes a compare.

    Args:
        x: [T, B, H, W, C]. Beyond the border there is nothing to compare with.
        stride: 2 to halve the image, 1 to dilate it.
    """
    height, width = x.shape[2:4]
    lowest = False if x.dtype == np.bool_ else np.iinfo(np.int64).min
    framed = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=lowest)
    windows = [
        framed[:, :, dy : dy + height : stride, dx : dx + width : stride]
        for dy in range(3)
        for dx in range(3)
    ]
    pooled: T = np.max(windows, axis=0)
    return pooled


def dilate_tokens(s: Spikes, heads: int) -> Spikes:
    """Dilate 3x3 over (token in raster order, channel within its head); s is [T, B, H, W, C]."""
    T_, B, H, W, C = s.shape
    tokens = s.reshape(T_, B, H * W, heads, C // heads).transpose(0, 1, 3, 2, 4)
    framed = np.pad(tokens, [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1)])
    N, D = tokens.shape[3:]
    windows = [framed[..., dn : dn + N, dc : dc + D] for dn in range(3) for dc in range(3)]
    dilated: Spikes = np.any(windows, axis=0).transpose(0, 1, 3, 2, 4).reshape(s.shape)
    return dilated
