"""`spikedriven predict`: what a run says about image files."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from spikedriven.cli.console import show_answers
from spikedriven.cli.program import check_top


def run(options: Namespace) -> int:
    """Classify every readable image; exit 2 where one was not."""
    from spikedriven.train.predict import predict

    check_top(options.top)
    predictions = predict(
        Path(options.run),
        [Path(image) for image in options.images],
        top_k=options.top,
        weights=options.weights,
    )
    answers = [{**asdict(p), "path": str(p.path)} for p in predictions]
    return show_answers(answers, as_json=options.json)
