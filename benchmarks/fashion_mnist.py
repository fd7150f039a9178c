"""Test accuracy, training time and learning curve of the Fashion-MNIST recipe.

    python benchmarks/fashion_mnist.py DATA

DATA holds FashionMNIST/raw as torchvision lays it out. Appends to
benchmarks/results/fashion_mnist.jsonl and keeps the epochs' metrics beside it.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from spikedriven.records import append_records, read_records
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train seed 0; keep the run's own records and its curve."""
    data = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        metrics = fit(load_recipe("fashion_mnist", ["seed=0"]), run_dir=run, data_root=data)
        append_records(RESULTS / "fashion_mnist.jsonl", read_records(run / "records.jsonl"))
        shutil.copy(run / "metrics.csv", RESULTS / "fashion_mnist_curve.csv")
    print(f"{metrics['test_accuracy']:.4f} in {metrics['train_seconds']:.0f} s")


if __name__ == "__main__":
    main()
