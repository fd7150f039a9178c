"""What is read from measured curves: straight lines, powers, and where one exceeds another."""

from collections.abc import Sequence

import numpy as np


def line(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float, float]:
    """Return offset, slope and largest relative residual of times = offset + slope * sizes.

    Residuals are weighed relative to the time, so that small sizes count as much as large ones.
    """
    x, y = np.asarray(sizes, np.float64), np.asarray(times, np.float64)
    rows = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    (offset, slope), *_ = np.linalg.lstsq(rows, np.ones_like(y), rcond=None)
    residual = np.abs((offset + slope * x) / y - 1).max()
    return float(offset), float(slope), float(residual)


def power(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return p of times ~ sizes ** p: the slope between logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def above(limit: float, sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Return the first and the last size, from 0 to 1, between which times exceed a limit.

    Between neighbours a straight line is assumed. A curve may dip below the limit in between.
    (1, 1) where it never exceeds it.
    """
    over = [time > limit for time in times]
    if not any(over):
        return 1.0, 1.0
    first, last = over.index(True), len(over) - 1 - over[::-1].index(True)

    def between(below: int, beyond: int) -> float:
        share = (limit - times[below]) / (times[beyond] - times[below])
        return float(sizes[below] + share * (sizes[beyond] - sizes[below]))

    begin = 0.0 if first == 0 else between(first - 1, first)
    end = 1.0 if last == len(times) - 1 else between(last + 1, last)
    return begin, end
