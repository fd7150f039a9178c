"""`spikedriven predict`: what a run says about image files."""

import sys
from argparse import Namespace
from pathlib import Path

from spikedriven.cli.console import say, show_json


def run(options: Namespace) -> int:
    """Classify every readable image; exit 2 where one was not."""
    from spikedriven.train.predict import predict

    predictions = predict(
        Path(options.run), [Path(image) for image in options.images], top_k=options.top
    )
    unreadable = [p for p in predictions if p.error is not None]
    if options.json:
        show_json(
            [
                {
                    "path": str(p.path),
                    "classes": p.classes,
                    "probabilities": p.probabilities,
                    "error": p.error,
                }
                for p in predictions
            ]
        )
    else:
        for prediction in predictions:
            if prediction.error is None:
                pairs = zip(prediction.classes, prediction.probabilities, strict=True)
                say(f"{prediction.path}  " + "  ".join(f"{c} {p:.3f}" for c, p in pairs))
    for prediction in unreadable:
        print(f"error: {prediction.error}", file=sys.stderr)
    if unreadable:
        print(
            f"error: {len(unreadable)} of {len(predictions)} images could not be read",
            file=sys.stderr,
        )
    return 2 if unreadable else 0
