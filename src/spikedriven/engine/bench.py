"""The engine beside the float model: the same images, the same answers, the time of each."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from spikedriven.engine.plan import Program
from spikedriven.engine.stats import Stats
from spikedriven.models.sdt import SpikeDrivenTransformer


@dataclass(slots=True)
class Contender:
    """One way to run the network."""

    name: str
    logits: NDArray[np.float32]
    """[B, K], of all images."""
    stats: Stats | None
    """What the engine counted; None for the float model."""
    seconds: list[float] = field(default_factory=list)
    """Time of a whole pass over the images, round by round."""

    @property
    def median(self) -> float:
        """Median seconds of a pass."""
        return statistics.median(self.seconds)


def compare_speed(
    model: SpikeDrivenTransformer,
    programs: Mapping[str, Program],
    pixels: NDArray[np.uint8],
    *,
    batch: int = 1,
    rounds: int = 5,
    threads: int | None = None,
) -> list[Contender]:
    """Run the float model and its programs in turns, in one process.

    Args:
        model: The float model, in evaluation mode.
        programs: Name -> program compiled from it.
        pixels: Images, uint8 [B, c, H, W].
        batch: Images given at once.
        rounds: Passes of each; they alternate. One more pass warms up.
        threads: Threads of each; by default all.

    Returns:
        The float model first, then the programs.
    """
    some = next(iter(programs.values()))
    mean = np.asarray(some.input.mean, np.float32)[:, None, None]
    std = np.asarray(some.input.std, np.float32)[:, None, None]
    x = torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std)

    before = torch.get_num_threads()

    def by_model() -> tuple[NDArray[np.float32], None]:
        torch.set_num_threads(threads or before)  # one OpenMP serves Numba and PyTorch
        with torch.inference_mode():
            parts = [model(part).numpy() for part in x.split(batch)]
        return np.concatenate(parts), None

    def by_program(program: Program) -> tuple[NDArray[np.float32], Stats]:
        total, parts = Stats(), []
        for first in range(0, len(pixels), batch):
            logits, stats = program.run(pixels[first : first + batch], threads=threads)
            parts.append(logits)
            total.add(stats)
        return np.concatenate(parts), total

    runs: dict[str, Callable[[], tuple[NDArray[np.float32], Stats | None]]] = {"float": by_model}
    for name, program in programs.items():
        runs[name] = partial(by_program, program)
    try:
        contenders = [Contender(name, *run()) for name, run in runs.items()]
        for _ in range(rounds):
            for contender, run in zip(contenders, runs.values(), strict=True):
                begin = time.perf_counter()
                run()
                contender.seconds.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return contenders
