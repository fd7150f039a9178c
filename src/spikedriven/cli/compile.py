"""`spikedriven compile`: a trained run becomes a program that only adds."""

import time
from argparse import Namespace
from pathlib import Path

from spikedriven.cli.console import command, say, show_json


def run(options: Namespace) -> int:
    """Compile, write one file, and say what is in it."""
    from spikedriven.engine.compile import compile as compile_model
    from spikedriven.train.predict import run_info
    from spikedriven.train.run import Run

    trained = Run.open(Path(options.run))
    model = trained.model(options.checkpoint)
    info = run_info(trained, model.config)
    begin = time.perf_counter()
    program = compile_model(
        model,
        options.weights,
        mean=info.mean,
        std=info.std,
        image_size=info.image_size,
        classes=info.classes,
    )
    seconds = time.perf_counter() - begin
    path = Path(options.output or f"{Path(options.run).resolve().name}-{options.weights}.spk")
    program.save(path)
    size = path.stat().st_size
    if options.json:
        show_json(
            {
                "program": str(path),
                "weights": options.weights,
                "steps": len(program.steps),
                "bytes": size,
                "seconds": seconds,
            }
        )
        return 0
    say(f"Compiled {options.run} into {path}: {options.weights} weights, {size / 1e6:.1f} MB")
    say(f"Next: {command('run', path, 'IMAGE.png')}")
    say(f"      {command('bench', 'engine', options.run)}")
    return 0
