"""`spikedriven train`: a recipe into a run folder."""

import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from spikedriven.cli.console import command, say, show_mistakes, show_rates
from spikedriven.errors import ConfigError
from spikedriven.train.rank import this_rank


def run(options: Namespace) -> int:
    """Train or resume, then say what came out."""
    is_first = this_rank() == 0  # before Lightning, which reads the same on import

    from spikedriven.train.fit import fit, resume
    from spikedriven.train.recipe import load_recipe

    keywords: dict[str, Any] = {
        "data_root": Path(options.data) if options.data else None,
        "show_progress": is_first and sys.stdout.isatty(),
        "say": say,
    }
    start: Callable[[], dict[str, Any]]
    if options.resume is not None:
        if any(word is not None for word in (options.recipe, options.run, options.seeds)):
            raise ConfigError(
                "--resume continues a run as it was started; it must stand without a recipe, "
                "settings, --run or --seeds: leave them out"
            )
        folder = Path(options.resume)
        start = partial(resume, folder, **keywords)
    else:
        if options.recipe is None:
            raise ConfigError(
                "no recipe is given; train needs one, or --resume RUN: "
                "write for example spikedriven train digits"
            )
        recipe = load_recipe(options.recipe, options.settings)
        folder = Path(options.run) if options.run else Path("runs") / Path(options.recipe).stem
        if options.seeds is not None:
            if any(word.startswith("seed=") for word in options.settings):
                raise ConfigError(
                    "seed is set beside --seeds, which sets it for every run; one of them must "
                    "say it: leave one out"
                )
            return _run_seeds(recipe, _seeds(options.seeds), folder, keywords)
        start = partial(fit, recipe, run_dir=folder, **keywords)
    try:
        metrics = start()
    except KeyboardInterrupt:
        data = ["--data", options.data] if options.data else []
        started = folder.exists()
        hint = command("train", "--resume", folder, *data) if started else "the same command"
        if is_first:
            print(f"interrupted; continue with: {hint}", file=sys.stderr)
        return 130
    if is_first:
        _show(metrics, folder)
    return 0


def _seeds(words: str) -> list[int]:
    try:
        return [int(word) for word in words.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--seeds is {words!r}; it must be whole numbers with commas between them: "
            "write for example --seeds 0,1,2"
        ) from error


def _run_seeds(recipe: Any, seeds: list[int], folder: Path, keywords: dict[str, Any]) -> int:
    from spikedriven.train.seeds import fit_seeds

    try:
        result = fit_seeds(recipe, seeds, run_dir=folder, **keywords)
    except KeyboardInterrupt:
        print("interrupted; continue with the same command", file=sys.stderr)
        return 130
    say()
    for seed, accuracy in zip(result["seeds"], result["test_accuracy"], strict=True):
        say(f"seed {seed}: test accuracy {accuracy:.4f}")
    say(f"Mean {result['mean']:.4f} ± {result['sd']:.4f} (deviation of one run)")
    say(f"Everything is in {folder}.")
    return 0


def _show(metrics: dict[str, Any], folder: Path) -> None:
    classes = metrics["data"]["classes"]
    mistakes = [
        (classes[true], classes[said], count)
        for true, row in enumerate(metrics["confusion"])
        for said, count in enumerate(row)
        if true != said and count
    ]
    say()
    say(
        f"Test accuracy {metrics['test_accuracy']:.4f} on {metrics['test_count']} images that "
        "training never saw"
    )
    say(f"{metrics['num_parameters']:,} parameters, {metrics['train_seconds']:.0f} s of training")
    say()
    show_mistakes(sorted(mistakes, key=lambda mistake: -mistake[2])[:3])
    say()
    show_rates(metrics["firing_rates"])
    say()
    say(f"Everything is in {folder}. Next: {command('eval', folder)}")
