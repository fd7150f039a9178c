"""Test accuracy, training time and learning curve of the Fashion-MNIST recipe.

    python benchmarks/fashion_mnist.py --data DIR --run runs/fashion_mnist

DIR holds FashionMNIST/raw as torchvision lays it out. Appends to
benchmarks/results/fashion_mnist.jsonl and keeps the epochs' metrics beside it. The run stays, for
those who count and compile it (`energy_curve.py`, `engine_accuracy.py`).
"""

import argparse
import shutil
from pathlib import Path

from spikedriven.records import append_records, read_records
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train seed 0; keep the run's own records and its curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--run", type=Path, required=True, help="folder to make")
    options = parser.parse_args()
    recipe = load_recipe("fashion_mnist", ["seed=0"])
    metrics = fit(recipe, run_dir=options.run, data_root=options.data, say=print)
    append_records(RESULTS / "fashion_mnist.jsonl", read_records(options.run / "records.jsonl"))
    shutil.copy(options.run / "metrics.csv", RESULTS / "fashion_mnist_curve.csv")
    print(f"{metrics['test_accuracy']:.4f} in {metrics['train_seconds']:.0f} s")


if __name__ == "__main__":
    main()
