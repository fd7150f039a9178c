"""Two training processes against one that is pinned to one core: what working together costs.

    python benchmarks/processes.py

Both train the digits with one thread a process, the two with half the batch each, in turns. Images
per second are those between the first and the last step that is logged: loading, stepping and
checkpoints are in it, the seconds in which a second process starts are not, and stand beside.
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

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "processes.jsonl"
BATCH = 64
# Training images of the digits where none is held out: an epoch is then training alone.
IMAGES = 1437


def train(processes: int, epochs: int) -> tuple[float, float]:
    """Train and return images per second, and the seconds of training beside the steps."""
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
        log = EventAccumulator(str(run / "tensorboard")).Reload()  # type: ignore[no-untyped-call]
    losses = log.Scalars("loss")  # type: ignore[no-untyped-call]
    first, last = losses[0], losses[-1]
    # Epochs end with a batch that is not full.
    images = (last.step - first.step) * IMAGES / -(-IMAGES // BATCH)
    rate = images / (last.wall_time - first.wall_time)
    return rate, float(metrics["train_seconds"]) - epochs * IMAGES / rate


def main() -> None:
    """Measure in turns, print and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    pairs = [(train(1, options.epochs), train(2, options.epochs)) for _ in range(options.rounds)]
    shares = [two / (2 * one) for (one, _), (two, _) in pairs]
    rates, starts = (
        [statistics.median(pair[n][k] for pair in pairs) for n in (0, 1)] for k in (0, 1)
    )
    subject = "sdt_tiny on digits, batch 64"
    low, high = min(shares), max(shares)
    records = [
        measured("two_processes_share", statistics.median(shares), "1", subject, len(shares),
                 low=low, high=high),
    ]  # fmt: skip
    for who, rate, start in zip(("one process", "two processes"), rates, starts, strict=True):
        about = f"{subject}, {who}"
        records.append(measured("images_per_second", rate, "1/s", about, len(pairs)))
        records.append(measured("start_seconds", start, "s", about, len(pairs)))
    for record in records:
        print(f"{record.subject}: {record.metric} {record.value:.3f} {record.unit}")
    keep_records(RESULTS, records)


if __name__ == "__main__":
    main()
