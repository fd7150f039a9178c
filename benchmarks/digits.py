"""Test accuracy and training time on the digits, for three seeds.

    python benchmarks/digits.py

Appends to benchmarks/results/digits.jsonl.
"""

import tempfile
from pathlib import Path

from spikedriven.records import append_records, read_records
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "digits.jsonl"


def main() -> None:
    """Train seeds 0, 1 and 2, and keep each run's own records."""
    for seed in (0, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            metrics = fit(load_recipe("digits", [f"seed={seed}"]), run_dir=run)
            append_records(RESULTS, read_records(run / "records.jsonl"))
        print(f"seed {seed}: {metrics['test_accuracy']:.4f} in {metrics['train_seconds']:.0f} s")


if __name__ == "__main__":
    main()
