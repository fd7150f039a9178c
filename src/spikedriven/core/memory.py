"""Arrays that begin where a cache line begins, and large ones in memory that was used before."""

import ctypes
import math
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64
LARGE = 1 << 20
"""Bytes from which on fresh memory comes page by page from the system, which takes its time."""
SIZES, ALIKE = 32, 8
"""How many sizes of blocks are remembered, and how many blocks of each."""

_FREE: dict[int, list[NDArray[np.uint8]]] = {}
"""Bytes -> blocks that no array lies in any more; the sizes asked for last stand last."""
_ASKING = threading.Lock()
"""Held while sizes change places; what dies meanwhile joins its list, which needs no lock."""


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros whose first byte is the first of a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + LINE, np.uint8)
    skip = -room.ctypes.data % LINE
    return room[skip : skip + size].view(dtype).reshape(shape)


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to be written; a large one begins as `zeros` do, where an earlier one lay.

    A step of training asks for the same arrays as the step before. Were they given back to the
    system in between, it would clear every page anew, which costs as much as writing it does.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.empty(shape, dtype)
    with _ASKING:
        blocks = _FREE[size] = _FREE.pop(size, [])
        while len(_FREE) > SIZES:
            del _FREE[next(iter(_FREE))]
        block = blocks.pop() if blocks else np.empty(size + LINE, np.uint8)
    # No array itself, so that every view of the result, and every tensor, holds on to it.
    owner = (ctypes.c_uint8 * size).from_buffer(block.data, -block.ctypes.data % LINE)
    weakref.finalize(owner, _take_back, blocks, block).atexit = False
    return np.frombuffer(memoryview(owner), dtype).reshape(shape)


def _take_back(blocks: list[NDArray[np.uint8]], block: NDArray[np.uint8]) -> None:
    if len(blocks) < ALIKE:
        blocks.append(block)
