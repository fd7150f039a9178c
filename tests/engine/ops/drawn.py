"""Spikes to test with, and the way from the references' arrays to packed spikes and back."""

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.bits import GROUP, Spikes, Words, pack, unpack

# One token, around a byte, around a word, around two words, and the paper's 14 x 14, as (H, W).
SIDES = [(1, 1), (1, 7), (2, 4), (3, 3), (7, 9), (8, 8), (5, 13), (1, 127), (3, 43), (14, 14)]
TOKENS = [height * width for height, width in SIDES]
RATES = [0, 0.02, 0.2, 1]
CHANNELS = [1, 3, 63, 65, 100, 130]
STEPS = [1, 2, 3, 4]
LEAKS = [(1,), (2, 3, 5)]
"""tau = 2, and 1/tau = 0.40625."""
GARBAGE = np.uint64(0xA5A5A5A5A5A5A5A5)
"""What outputs hold before a kernel fills them."""


def draw_spikes(*shape: int, rate: float = 0.2, seed: int = 0) -> Spikes:
    """Draw spikes [T, B, H, W, C]."""
    return np.random.default_rng(seed).random(shape) < rate


def draw_integers(*shape: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw whole numbers between -most and most; a fifth of them are as large as they may be."""
    random = np.random.default_rng(seed)
    drawn = random.integers(-most, most + 1, shape)
    return np.where(random.random(shape) < 0.2, np.where(drawn < 0, -most, most), drawn)


def to_words(s: Spikes) -> Words:
    """Pack [T, B, H, W, C], T up to four, into [B * H * W, 4, P]; missing steps are silent."""
    group = np.zeros((GROUP, *s.shape[1:]), np.bool_)
    group[: len(s)] = s
    return pack(np.moveaxis(group, 0, -2).reshape(-1, GROUP, s.shape[-1]))


def to_spikes(words: Words, shape: tuple[int, ...]) -> Spikes:
    """Unpack [B * H * W, 4, P] into four steps of `shape` = [T, B, H, W, C]."""
    _, images, height, width, channels = shape
    s = unpack(words, channels).reshape(images, height, width, GROUP, channels)
    return np.moveaxis(s, 3, 0)


def assert_words(words: Words, wanted: Spikes) -> None:
    """Check every bit: spikes as wanted, silence at steps that are none and past the channels."""
    assert np.array_equal(words, to_words(wanted))


def to_rows(x: NDArray[np.int64]) -> NDArray[np.int32]:
    """Turn [T, B, H, W, C] into int32 [B * H * W, 4, C filled up to 64]."""
    steps, images, height, width, channels = x.shape
    rows = np.zeros((images * height * width, GROUP, -(-channels // 64) * 64), np.int32)
    rows[:, :steps, :channels] = np.moveaxis(x, 0, -2).reshape(-1, steps, channels)
    return rows


def to_stream(x: NDArray[np.int64]) -> NDArray[np.int32]:
    """Turn [T, B, H, W, C] into int32 [P, B * H * W, 4, 64], panel by panel as the stream lies."""
    rows = to_rows(x)
    return np.ascontiguousarray(rows.reshape(*rows.shape[:2], -1, 64).transpose(2, 0, 1, 3))


def from_stream(stream: NDArray[np.int32]) -> NDArray[np.int32]:
    """Turn a stream [P, n, 4, 64] into [n, 4, 64 P]."""
    return stream.transpose(1, 2, 0, 3).reshape(*stream.shape[1:3], -1)


def leak_array(leak: tuple[int, ...]) -> NDArray[np.int64] | None:
    """Return a leak as kernels take it."""
    return None if leak == (1,) else np.array(leak, np.int64)
