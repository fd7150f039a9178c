"""Timing that is fair to everyone: rivals take turns in one process.

A machine's speed drifts, and so does what else it does. In turns, every rival meets every mood.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Run = Callable[[], Any]
Name = TypeVar("Name")

# Threads of the rival before go on spinning for a few milliseconds after their last task.
PAUSE_SECONDS = 0.02
# A turn is as many calls in a row as fill this time, at least one; its figure is their median. So
# a call of milliseconds is timed as users meet it, with its weights in the cache.
TURN_SECONDS = 0.25


def in_turns(
    runs: Mapping[Name, Run], rounds: int, fill: float = TURN_SECONDS
) -> dict[Name, list[float]]:
    """Return the seconds of a call, by name, one figure for each round of turns of `fill` s."""
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            seconds[name].append(turn(run, fill))
    return seconds


def turn(run: Run, fill: float = TURN_SECONDS) -> float:
    """Return the median seconds of the calls of one turn."""
    times = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < fill:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Return how many times slower they are: the median over rounds, each with its neighbour."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
