"""Places worked out beforehand, so that no loop of a kernel multiplies to find its data."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

COLUMNS = 8
"""Columns of a schedule; a power of two, so that a row is found by a shift."""
ROW = 3
"""Its logarithm: row i begins at i << ROW."""


@lru_cache(maxsize=64)
def strides(count: int, *steps: int) -> NDArray[np.int64]:
    """Return i * step for each i below `count` and each step, flat: [count * 8]."""
    table = np.zeros((count, COLUMNS), np.int64)
    table[:, : len(steps)] = np.arange(count)[:, None] * np.array(steps, np.int64)
    return table.reshape(-1)


def flat(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return columns side by side as a flat schedule: [count * 8]."""
    table = np.zeros((len(columns[0]), COLUMNS), np.int64)
    for number, column in enumerate(columns):
        table[:, number] = column
    return table.reshape(-1)
