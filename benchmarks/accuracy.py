"""Test accuracy, training time and learning curve of a recipe that one CPU trains.

    python benchmarks/accuracy.py fashion_mnist --data DIR --run runs/fashion_mnist
    python benchmarks/accuracy.py cifar10_cpu --data DIR --run runs/cifar10_cpu
    python benchmarks/accuracy.py imagenette --data imagenette2-64 --run runs/imagenette

Trains the recipe's own seed into a new folder; goes on where one stopped; only keeps the records of
one that has finished, however it was started. DIR holds the data as torchvision lays it out, or
train/CLASS and val/CLASS. Writes benchmarks/results/RECIPE.jsonl and, beside it, the curve: all
accuracies on the validation split, and every tenth of those of training batches.
"""

import argparse
import csv
from pathlib import Path

from spikedriven.errors import ConfigError
from spikedriven.records import keep_records, read_records
from spikedriven.train.fit import fit, resume
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run

RESULTS = Path(__file__).parent / "results"
EVERY = 10


def main() -> None:
    """Train as far as is needed; keep the run's own records and its curve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="its packaged name")
    parser.add_argument("--data", type=Path, required=True, help="folder of the dataset")
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    if not options.run.exists():
        fit(recipe, run_dir=options.run, data_root=options.data, say=print)
    run = Run.open(options.run)
    if run.recipe() != recipe:
        raise ConfigError(
            f"{options.run} is a run of another recipe than {options.recipe}; it must be of this "
            "one: name another folder"
        )
    metrics = run.metrics() or resume(options.run, data_root=options.data, say=print)
    results = RESULTS / f"{options.recipe}.jsonl"
    results.unlink(missing_ok=True)  # on another machine, too, the recipe was another one then
    keep_records(results, read_records(options.run / "records.jsonl"))
    keep_curve(options.run / "metrics.csv", RESULTS / f"{options.recipe}_curve.csv")
    print(f"{metrics['test_accuracy']:.4f} in {metrics['train_seconds']:.0f} s")


def keep_curve(source: Path, target: Path) -> None:
    """Copy what a figure shows of a run's table."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    batches = [row for row in rows if row["accuracy"]]
    kept = [row for row in rows if row["validation_accuracy"]] + batches[EVERY - 1 :: EVERY]
    columns = ("epoch", "step", "accuracy", "validation_accuracy", "loss", "validation_loss")
    with target.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(sorted(kept, key=lambda row: int(row["step"])))


if __name__ == "__main__":
    main()
