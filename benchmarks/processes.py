"""Two training processes against one that is pinned to one core: what working together costs.

    python benchmarks/processes.py

Both train with one thread a process, the two with half the batch each, in turns: the digits, whose
steps are small, and noise of CIFAR-10's size at four time steps, by the recipe for one CPU. Images
per second are those between the first and the last step that is logged: loading, stepping and
checkpoints are in it, the seconds in which a second process starts are not, and stand beside. Two
runs at once, each alone with half the batch, share nothing but the memory: what they reach is the
most that two processes could.
Adds to benchmarks/results/processes.jsonl.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "processes.jsonl"
BATCH = 64
NOISE, CLASSES = 1536, 10
"""Images of noise, and their classes."""


@dataclass(frozen=True)
class Workload:
    """What is trained: a recipe with changes, and how many images an epoch has."""

    subject: str
    words: tuple[str, ...]
    images: int
    epochs: int


DIGITS = Workload("sdt_tiny on digits, batch 64", ("digits", "data.validation_fraction=0"), 1437, 6)
LARGER = Workload(
    "sdt_tiny on 32 x 32 pixels, batch 64",
    ("cifar10_cpu", "schedule.single_step_epochs=0", "data.validation_fraction=0",
     "data.name=image_folder", "data.image_size=32"),
    NOISE, 2,
)  # fmt: skip


def make_noise(folder: Path) -> None:
    """Write images of noise, 32 x 32, in ten classes, and as many to test as there are classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", NOISE), ("val", CLASSES)):
        for n in range(count):
            path = folder / split / f"class_{n % CLASSES}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)


class Training:
    """A training run as a process of its own, on given cores, one thread a process."""

    def __init__(self, work: Workload, folder: Path, cores: list[int], batch: int) -> None:
        self.work = work
        self.run = folder / f"run {cores}"
        self.batch = batch * len(cores)
        command = [
            sys.executable, "-m", "spikedriven", "train", *work.words, "--run", str(self.run),
            f"data.batch_size={batch}", f"trainer.devices={len(cores)}", "trainer.accelerator=cpu",
            f"schedule.epochs={work.epochs}",
        ]  # fmt: skip
        if work is LARGER:
            command += ["--data", str(folder.parent / "noise")]
        one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **one_thread},
            stdout=subprocess.DEVNULL,
        )
        os.sched_setaffinity(self.process.pid, cores)

    def rate(self) -> tuple[float, float]:
        """Wait, and return images per second, and the seconds of training beside the steps."""
        if self.process.wait():
            raise SystemExit("a training run failed: see above")
        metrics = json.loads((self.run / "metrics.json").read_text())
        log = EventAccumulator(str(self.run / "tensorboard")).Reload()  # type: ignore[no-untyped-call]
        losses = log.Scalars("loss")  # type: ignore[no-untyped-call]
        first, last = losses[0], losses[-1]
        # Epochs end with a batch that is not full.
        images = self.work.images
        between = (last.step - first.step) * images / -(-images // self.batch)
        rate = between / (last.wall_time - first.wall_time)
        return rate, float(metrics["train_seconds"]) - self.work.epochs * images / rate


def turn(work: Workload, folder: Path) -> dict[str, float]:
    """Measure one process, two, and two runs at once, one after another."""
    folder.mkdir()
    cores = sorted(os.sched_getaffinity(0))[:2]
    one, one_start = Training(work, folder, cores[:1], BATCH).rate()
    two, two_start = Training(work, folder, cores, BATCH // 2).rate()
    shutil.rmtree(folder)
    folder.mkdir()
    beside = [Training(work, folder, [core], BATCH // 2) for core in cores]
    most = sum(run.rate()[0] for run in beside)
    shutil.rmtree(folder)
    return {
        "share": two / (2 * one), "most": most / (2 * one), "one": one, "two": two,
        "one_start": one_start, "two_start": two_start,
    }  # fmt: skip


def main() -> None:
    """Measure in turns, print and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    records = []
    with tempfile.TemporaryDirectory() as name:
        make_noise(Path(name) / "noise")
        for work in (DIGITS, LARGER):
            turns = [turn(work, Path(name) / "runs") for _ in range(options.rounds)]
            for metric, key in (("two_processes_share", "share"), ("two_runs_share", "most")):
                shares = [each[key] for each in turns]
                records.append(
                    measured(metric, statistics.median(shares), "1", work.subject, len(shares),
                             low=min(shares), high=max(shares))
                )  # fmt: skip
            for who in ("one", "two"):
                about = f"{work.subject}, {who} process{'es' * (who == 'two')}"
                for metric, key, unit in (
                    ("images_per_second", who, "1/s"),
                    ("start_seconds", f"{who}_start", "s"),
                ):
                    middle = statistics.median(each[key] for each in turns)
                    records.append(measured(metric, middle, unit, about, len(turns)))
    for record in records:
        print(f"{record.subject}: {record.metric} {record.value:.3f} {record.unit}")
    keep_records(RESULTS, records)


if __name__ == "__main__":
    main()
