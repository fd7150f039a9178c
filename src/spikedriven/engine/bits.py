"""Spikes as bits: 64 channels of one token at one step in a word.

Packed spikes have the shape [n, 4, P]: n tokens (or pixels) of all images in a row, four time
steps, P = ceil(C / 64) words. Bit c % 64 of word c // 64 is channel c; bits past C are zero.
"""

import numpy as np
from numpy.typing import NDArray

WORD = 64
GROUP = 4
"""Time steps that travel together."""

Words = NDArray[np.uint64]
Spikes = NDArray[np.bool_]


def words_for(channels: int) -> int:
    """Return how many words hold the spikes of so many channels."""
    return -(-channels // WORD)


def pack(spikes: Spikes) -> Words:
    """Pack [..., C] into [..., P] words."""
    *lead, channels = spikes.shape
    padded = np.zeros((*lead, words_for(channels) * WORD), np.bool_)
    padded[..., :channels] = spikes
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8").astype(np.uint64)


def unpack(words: Words, channels: int) -> Spikes:
    """Unpack [..., P] words into [..., C]."""
    octets = np.ascontiguousarray(words).astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=channels, bitorder="little").astype(np.bool_)
