"""Two training processes against one that is pinned to one core: what working together costs.

    python benchmarks/processes.py

Both train the digits with one thread a process, the two with half the batch each, in turns. Images
per second are those of whole epochs: loading, stepping, validating, checkpoints.
Adds to benchmarks/results/processes.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "processes.jsonl"
BATCH = 64
# Training images of the digits where none is held out: an epoch is then training alone.
IMAGES = 1437


def images_per_second(processes: int, epochs: int) -> float:
    """Train and return training images over seconds of training."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, "-m", "spikedriven", "train", "digits", "--run", str(run),
            "data.validation_fraction=0", f"data.batch_size={BATCH // processes}",
            f"trainer.devices={processes}", "trainer.accelerator=cpu",
            f"schedule.epochs={epochs}",
        ]  # fmt: skip
        one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        cores = sorted(os.sched_getaffinity(0))[:processes]
        subprocess.run(
            command,
            env={**os.environ, **one_thread},
            stdout=subprocess.DEVNULL,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        metrics = json.loads((run / "metrics.json").read_text())
    return epochs * IMAGES / float(metrics["train_seconds"])


def main() -> None:
    """Measure in turns, print and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    pairs = [
        (images_per_second(1, options.epochs), images_per_second(2, options.epochs))
        for _ in range(options.rounds)
    ]
    shares = [two / (2 * one) for one, two in pairs]
    one, two = (statistics.median(column) for column in zip(*pairs, strict=True))
    subject = "sdt_tiny on digits, batch 64"
    low, high = min(shares), max(shares)
    records = [
        measured("two_processes_share", statistics.median(shares), "1", subject, len(shares),
                 low=low, high=high),
        measured("images_per_second", one, "1/s", f"{subject}, one process", len(pairs)),
        measured("images_per_second", two, "1/s", f"{subject}, two processes", len(pairs)),
    ]  # fmt: skip
    for record in records:
        print(f"{record.subject}: {record.metric} {record.value:.3f} {record.unit}")
    keep_records(RESULTS, records)


if __name__ == "__main__":
    main()
