"""What the Triton kernels share: tiles of [rows, channels] with the channel fastest, and bits.

A tensor [..., C, *space] lies channels-last, so it is a matrix of rows (pixels) and columns
(channels). A program works on a tile of it; a spike kept for the backward pass is one bit, eight
channels to a byte, each row beginning a byte of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Neurons per tile: with 128 threads, 8 each, which load 16 bytes of half-precision numbers.
NEURONS = 1024
MAX_COLUMNS = 128
# Programs that sums are folded from; a function of no device, so that sums repeat on all.
PROGRAMS = 1024
BYTE = tl.constexpr(8)


def kind_of(x: Tensor) -> torch.dtype:
    """Return the type that membranes, counts and sums are held in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def real_of(x: Tensor) -> tl.dtype:
    """Return the same as Triton names it."""
    return tl.float64 if kind_of(x) == torch.float64 else tl.float32


def columns_of(channels: int) -> int:
    """Return a tile's width: a power of two that divides the channels, where one of 16 does."""
    dividing = channels & -channels
    wide = dividing if dividing >= 16 else triton.next_power_of_2(channels)
    return max(8, min(MAX_COLUMNS, wide))


def rows_of(columns: int, num_steps: int) -> int:
    """Return a tile's height: fewer neurons where more steps share the registers."""
    neurons = NEURONS if num_steps <= 4 else NEURONS // 2 if num_steps <= 8 else NEURONS // 4
    return max(1, neurons // columns)


def bytes_of(channels: int) -> int:
    """Return how many bytes hold the bits of a row."""
    return -(-channels // 8)


@triton.jit
def store_bits(bits, fired, row, c, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write a tile of booleans [ROWS, COLS]: row [ROWS], c the first channel."""
    ones = tl.reshape(fired.to(tl.int32), [ROWS, COLS // BYTE, BYTE])
    packed = tl.sum(ones << tl.arange(0, BYTE)[None, None, :], 2)
    width = tl.cdiv(cols, BYTE)
    byte = c // BYTE + tl.arange(0, COLS // BYTE)[None, :]
    inside = (row[:, None] < rows) & (byte < width)
    tl.store(bits + row[:, None] * width + byte, packed.to(tl.uint8), inside)


@triton.jit
def load_bits(bits, row, channel, rows, cols):  # type: ignore[no-untyped-def]
    """Read a tile of booleans at row [ROWS] and channel [COLS]."""
    width = tl.cdiv(cols, BYTE)
    inside = (row[:, None] < rows) & (channel[None, :] < cols)
    byte = tl.load(bits + row[:, None] * width + channel[None, :] // BYTE, inside, other=0)
    return ((byte.to(tl.int32) >> (channel[None, :] % BYTE)) & 1) != 0
