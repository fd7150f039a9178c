"""Lists of events, by the slowest possible way: look at every channel of every tap."""

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.bits import GROUP, Spikes

# The order of the patterns of steps, a Gray code: from one to the next a single step comes or goes.
GRAY = tuple(k ^ (k >> 1) for k in range(1, 2**GROUP))


def list_events(s: Spikes, kernel: int, row_of: NDArray[np.int64]) -> list[list[list[int]]]:
    """List which rows of weights every pixel needs, sorted by the steps in which it needs them.

    Args:
        s: Spikes of four steps, [4, B, H, W, C].
        kernel: 1 or 3.
        row_of: [kernel * kernel, C]: the row of weights of each tap and channel.

    Returns:
        [pixel][place in GRAY] -> rows, in the order of taps, then channels.
    """
    steps, images, height, width, channels = s.shape
    pad = kernel // 2
    framed = np.pad(s, [(0, 0), (0, 0), (pad, pad), (pad, pad), (0, 0)])
    lists = []
    for b in range(images):
        for y in range(height):
            for x in range(width):
                by_pattern: list[list[int]] = [[] for _ in GRAY]
                for tap in range(kernel * kernel):
                    seen = framed[:, b, y + tap // kernel, x + tap % kernel]
                    for c in range(channels):
                        pattern = sum(int(seen[t, c]) << t for t in range(steps))
                        if pattern:
                            by_pattern[GRAY.index(pattern)].append(int(row_of[tap, c]))
                lists.append(by_pattern)
    return lists
