"""Arrays that begin where a cache line begins: a vector then never straddles two of them."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros whose first byte is the first of a cache line."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    room = np.zeros(size + LINE, np.uint8)
    skip = -room.ctypes.data % LINE
    return room[skip : skip + size].view(dtype).reshape(shape)
