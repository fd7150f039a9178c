"""`spikedriven eval`: what a run gets right."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from spikedriven.cli.console import command, say, show_json, show_mistakes, show_rates


def run(options: Namespace) -> int:
    """Evaluate and print."""
    from spikedriven.train.evaluate import evaluate

    result = evaluate(
        Path(options.run),
        data_root=Path(options.data) if options.data else None,
        split=options.split,
        weights=options.weights,
        settings=options.settings,
    )
    if options.json:
        show_json(asdict(result))
        return 0
    say(
        f"{options.split} accuracy {result.accuracy:.4f} on {result.count} images, "
        f"cross-entropy {result.loss:.4f}"
    )
    say()
    show_mistakes(result.worst())
    say()
    show_rates(result.firing_rates)
    say()
    say(f"Next: {command('predict', options.run, 'IMAGE.png')}")
    return 0
