"""Timing that is fair to everyone: rivals take turns in one process.

A machine's speed drifts, and so does what else it does. In turns, every rival meets every mood; and
what others took of the processor meanwhile is said, for a busy machine is fair to nobody: whoever
waits for all of its threads waits for the one that was interrupted.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

# Share of the processor from which on others disturb.
LOUD = 0.05
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
    watch = Bystanders()
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            time.sleep(PAUSE_SECONDS)
            seconds[name].append(turn(run, fill))
    if (share := watch.share()) > LOUD:
        print(f"other processes took {share:.0%} of the processor: measure again when it is quiet")
    return seconds


class Bystanders:
    """Watches what other processes take of the processor from now on; on Linux, else nothing."""

    def __init__(self) -> None:
        self._before, self._begin = _seconds_of_others(), time.perf_counter()

    def share(self, ours: float = 0.0) -> float:
        """Return it as a share of all cores, between 0 and 1; `ours`: seconds of own children."""
        passed = (time.perf_counter() - self._begin) * (os.cpu_count() or 1)
        return max(0.0, (_seconds_of_others() - self._before - ours) / passed)


def _seconds_of_others() -> float:
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, *interrupts_and_stolen = map(
        int, stat.read_text().split("\n", 1)[0].split()[1:9]
    )
    ticks = user + nice + system + sum(interrupts_and_stolen)
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])


def turn(run: Run, fill: float = TURN_SECONDS) -> float:
    """Return the median seconds of the calls of one turn."""
    times = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < fill:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return how many times slower they are: the median over rounds, each with its neighbour."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
