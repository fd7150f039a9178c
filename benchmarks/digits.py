"""Test accuracy and training time on the digits, for three seeds.

    python benchmarks/digits.py

Writes benchmarks/results/digits.jsonl anew, once all three have ended.
"""

import argparse
import tempfile
from pathlib import Path

from spikedriven.records import Record, append_records, read_records
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "digits.jsonl"


def main() -> None:
    """Train seeds 0, 1 and 2, and keep each run's own records."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    records: list[Record] = []
    for seed in (0, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            metrics = fit(load_recipe("digits", [f"seed={seed}"]), run_dir=run)
            records += read_records(run / "records.jsonl")
        print(f"seed {seed}: {metrics['test_accuracy']:.4f} in {metrics['train_seconds']:.0f} s")
    RESULTS.unlink(missing_ok=True)
    append_records(RESULTS, records)


if __name__ == "__main__":
    main()
