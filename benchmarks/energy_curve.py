"""Accuracy against executed energy: a network for each budget of additions, or number of steps.

    python benchmarks/energy_curve.py --recipe digits
    python benchmarks/energy_curve.py --run runs/fashion_mnist --data DIR schedule.epochs=2
        --point none --point 0.05 --point "0.05 model.num_steps=1"

Trains a network for each point, counts it on the whole test split, and says where attention (query,
key and value included, as executed) costs 1/87.2 of the float32 attention of the same shape.

A point is a budget (a share of the additions of `--part`, or `none`) and what else its recipe sets;
`key=value` outside of points goes to all recipes. Without --point, the budgets of BUDGETS. With
--recipe every network begins at random and takes what the recipe takes: ten minutes for the digits
on two cores, hours for Fashion-MNIST. With --run, the others go on from that run's weights, and the
point `none` is the run itself; with --onward each goes on from the point before it.

Keeps the newest of each point in --results, as soon as it is counted.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikedriven.data import make_loader
from spikedriven.energy.account import attention, energy
from spikedriven.energy.counts import counting
from spikedriven.errors import SpikeDrivenError
from spikedriven.records import keep_records, measured
from spikedriven.train.config import Recipe
from spikedriven.train.evaluate import open_run_data
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run
from spikedriven.viz.figures.energy_curve import CLAIMED

RESULTS = Path(__file__).parent / "results" / "energy_curve.jsonl"
# The input of attention fires at some 0.3 freely; 1/87.2 needs some 0.015 at four steps.
BUDGETS = {
    "attention": ("none", "0.1", "0.05", "0.025", "0.015", "0.01"),
    "all": ("none", "0.1", "0.05", "0.025", "0.0125", "0.006"),
}


@dataclass(frozen=True)
class Point:
    """One network of the curve."""

    budget: str
    """Share of the additions, or `none`."""
    settings: tuple[str, ...] = ()
    """What else its recipe sets."""

    @classmethod
    def read(cls, text: str) -> "Point":
        """Read `BUDGET key=value ...`."""
        budget, *settings = text.split()
        return cls(budget, tuple(settings))

    def recipe(self, source: str | Path, begin: Path | None, options: argparse.Namespace) -> Recipe:
        """Return its recipe; `begin` is the run from whose weights it goes on."""
        settings = [*options.settings, *self.settings]
        if begin is not None:
            settings.append(f"model.weights={begin}")
        if self.budget != "none":
            settings += [f"loss.energy_budget={self.budget}", f"loss.energy_part={options.part}"]
        return load_recipe(source, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and count every point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    first = parser.add_mutually_exclusive_group(required=True)
    first.add_argument("--recipe", help="train every network from random weights")
    first.add_argument("--run", type=Path, help="train every network on from this run's weights")
    parser.add_argument("--data", type=Path, help="folder of the dataset")
    parser.add_argument("--part", choices=BUDGETS, default="all")
    parser.add_argument("--point", action="append", type=Point.read, metavar="'BUDGET key=value'")
    parser.add_argument("--onward", action="store_true", help="each goes on from the one before")
    parser.add_argument("--into", type=Path, help="keep the runs here, as point_1 and so on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    points = options.point or [Point(budget) for budget in BUDGETS[options.part]]
    source = Run.open(options.run).recipe_file if options.run else options.recipe
    try:
        for point in points:
            point.recipe(source, None, options)  # what cannot work fails before anything is trained
    except SpikeDrivenError as error:
        parser.error(str(error))
    begin: Path | None = options.run
    with contextlib.ExitStack() as stack:
        folder = options.into or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, point in enumerate(points, start=1):
            run_dir = folder / f"point_{number}"
            if options.run and point == Point("none"):
                run_dir = options.run
            else:
                fit(
                    point.recipe(source, begin, options), run_dir=run_dir,
                    data_root=options.data, say=lambda line: print(line, flush=True),
                )  # fmt: skip
            keep(Run.open(run_dir), point, options)
            if options.onward:
                begin = run_dir


def keep(run: Run, point: Point, options: argparse.Namespace) -> None:
    """Count a run, say and keep what came out."""
    metrics = run.metrics()
    found = counted(run, options.data) | {"test_accuracy": (metrics["test_accuracy"], "1")}
    shown = ", ".join(f"{name} {value:.4g}" for name, (value, _) in found.items())
    reached = found["attention_share_executed"][0] <= 1 / CLAIMED
    steps = run.model().config.num_steps
    print(
        f"budget {point.budget}, T={steps}: {shown}"
        f"{'; the claimed ratio is true here' if reached else ''}",
        flush=True,
    )
    curve = f"{metrics['model']} on {run.recipe().data.name}, {options.part}"
    settings = [] if run.folder == options.run else [*options.settings, *point.settings]
    context = {
        "curve": curve, "budget": point.budget, "num_steps": steps,
        "settings": " ".join(settings), "epochs": metrics["epochs"],
    }  # fmt: skip
    subject = f"{curve}, T={steps}, budget {point.budget}"
    keep_records(
        options.results,
        [
            measured(metric, value, unit, subject, metrics["test_count"], **context)
            for metric, (value, unit) in found.items()
        ],
    )


@torch.inference_mode()
def counted(run: Run, data: Path | None) -> dict[str, tuple[float, str]]:
    """Count a run on its test images; return metric -> value and unit."""
    model = run.model()
    test = open_run_data(run, model.config, data).test
    with counting(model) as counts:
        for images, _ in make_loader(test, batch_size=128):
            model(images)
    additions, ratio = counts.additions, attention(counts)
    dense = sum(counts[name]["dense"] for name in additions)
    return {
        "energy_executed": (energy(counts).total_mj, "mJ"),
        "executed_share": (sum(additions.values()) / dense, "1"),
        "attention_share_executed": (ratio.e2_pj / ratio.e1_pj, "1"),
    }


if __name__ == "__main__":
    main()
