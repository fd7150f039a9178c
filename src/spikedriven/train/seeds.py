"""One recipe with several seeds: how far apart its results lie says what a difference is worth."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from spikedriven.errors import ConfigError
from spikedriven.records import keep_records, measured, write_whole
from spikedriven.train.config import Recipe
from spikedriven.train.fit import fit, resume
from spikedriven.train.run import Run


def fit_seeds(
    recipe: Recipe,
    seeds: Sequence[int],
    *,
    run_dir: Path,
    data_root: Path | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a recipe once with every seed; what an earlier call finished or began is kept.

    Args:
        recipe: What to do; its own seed is replaced.
        seeds: Different whole numbers, at least two.
        run_dir: Folder of the runs: `seed0`, `seed1`, ... and `seeds.json`.
        data_root: As in `fit`.
        show_progress: As in `fit`.
        say: As in `fit`.

    Returns:
        What `seeds.json` holds: `seeds`, and the `test_accuracy` of each; their `mean`, and their
        `sd`, the deviation of one run, estimated with n - 1.

    Raises:
        ConfigError: The seeds are too few, stand twice or cannot be, a seed's folder holds another
            recipe, or the recipe asks for several processes.
        DataError: A seed's metrics.json is damaged.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"the seeds are {', '.join(map(str, seeds))}; there must be at least two, each once: "
            "write for example --seeds 0,1,2"
        )
    if recipe.trainer.processes > 1:
        raise ConfigError(
            f"{recipe.trainer.processes} processes are asked for beside several seeds; every seed "
            "must be a command of its own there: leave out --seeds and set seed=0"
        )
    keywords: dict[str, Any] = {
        "data_root": data_root,
        "show_progress": show_progress,
        "say": say,
    }
    recipes = [(replace(recipe, seed=seed), run_dir / f"seed{seed}") for seed in seeds]
    for one, folder in recipes:  # all of them before the first run takes its hours
        _check(one, folder)
    runs = [_one(one, folder, keywords) for one, folder in recipes]
    accuracies = [run["test_accuracy"] for run in runs]
    result = {
        "seeds": list(seeds),
        "test_accuracy": accuracies,
        "mean": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies),
    }
    write_whole(run_dir / "seeds.json", (json.dumps(result, indent=2) + "\n").encode())
    record = measured(
        "test_accuracy_mean",
        statistics.fmean(accuracies),
        "1",
        f"{recipe.model.name} on {recipe.data.name}",
        len(seeds),
        sd=statistics.stdev(accuracies),
        seeds=" ".join(map(str, seeds)),
        torch=torch.__version__,
    )
    keep_records(run_dir / "records.jsonl", [record])
    return result


def _check(recipe: Recipe, folder: Path) -> None:
    if not folder.exists():
        return
    run = Run.open(folder)
    run.metrics()
    if run.recipe() != recipe:
        raise ConfigError(
            f"{folder} holds a run of another recipe; the runs of one folder must differ in their "
            "seeds alone: choose another folder with --run"
        )


def _one(recipe: Recipe, folder: Path, keywords: dict[str, Any]) -> dict[str, Any]:
    if folder.exists() and (found := Run.open(folder).metrics()):
        return found
    if keywords["say"] is not None:
        keywords["say"](f"seed {recipe.seed}, in {folder}")
    if folder.exists():
        return resume(folder, **keywords)
    return fit(recipe, run_dir=folder, **keywords)
