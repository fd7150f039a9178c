"""`spikedriven bench engine`: the engine beside the float model, on a run's own test images."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from spikedriven.cli.console import say, show_json, show_table


def run(options: Namespace) -> int:
    """Compile the run both ways, classify its test images with each, and compare."""
    from spikedriven.engine.bench import compare_speed
    from spikedriven.engine.compile import compile as compile_model
    from spikedriven.errors import ConfigError
    from spikedriven.train.evaluate import open_run_data
    from spikedriven.train.run import Run

    if options.images < 1 or options.batch < 1:
        raise ConfigError(
            f"--images is {options.images} and --batch {options.batch}; both must be at least 1: "
            "leave them out for the usual"
        )
    trained = Run.open(Path(options.run))
    model = trained.model(None)
    test = open_run_data(trained, model.config, Path(options.data) if options.data else None).test
    count = min(options.images, len(test))
    pixels = np.stack([test.pixels(i).numpy() for i in range(count)])
    labels = test.labels[:count]
    programs = {
        weights: compile_model(
            model, weights, mean=test.info.mean, std=test.info.std, classes=test.info.classes
        )
        for weights in ("int16", "int8")
    }
    contenders = compare_speed(
        model, programs, pixels, batch=options.batch, threads=options.threads
    )
    floats = contenders[0]
    rows: list[dict[str, Any]] = []
    for contender in contenders:
        said = contender.logits.argmax(axis=1)
        total = None if contender.stats is None else contender.stats.total
        rows.append(
            {
                "weights": contender.name,
                "accuracy": float((said == labels).mean()),
                "same_answers": int((said == floats.logits.argmax(axis=1)).sum()),
                "images": count,
                "batch": options.batch,
                "ms_per_image": contender.median / count * 1e3,
                "speed_up": floats.median / contender.median,
                "additions_per_image": None if total is None else total.additions / count,
                "skipped": None if total is None else total.skipped,
            }
        )
    if options.json:
        show_json(rows)
        return 0
    say(f"{count} test images, {options.batch} at a time; medians of rounds that take turns")
    show_table(
        ["weights", "accuracy", "same answers", "ms/image", "speed-up", "additions", "skipped"],
        [
            (
                row["weights"],
                f"{row['accuracy']:.4f}",
                f"{row['same_answers']}/{count}",
                f"{row['ms_per_image']:.3f}",
                f"{row['speed_up']:.1f}x",
                "-" if row["additions_per_image"] is None else f"{row['additions_per_image']:,.0f}",
                "-" if row["skipped"] is None else f"{row['skipped']:.1%}",
            )
            for row in rows
        ],
    )
    return 0
