"""`spikedriven run`: what a compiled program says about image files, and what it cost."""

import time
from argparse import Namespace
from pathlib import Path

import numpy as np

from spikedriven.cli.console import say, show_answers
from spikedriven.errors import ConfigError, DataError


def run(options: Namespace) -> int:
    """Classify every readable image; exit 2 where one was not."""
    from spikedriven.data.transforms import decode
    from spikedriven.engine.plan import Program

    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; it must be at least 1: 5 is usual")
    program = Program.load(options.program)
    if program.input.size is None:
        raise ConfigError(
            f"{options.program} takes images of any size; to read files it must be bound to one: "
            "compile it with image_size"
        )
    images, errors = {}, {}
    for path in options.images:
        try:
            images[path] = decode(Path(path), program.input.channels, program.input.size).numpy()
        except DataError as error:
            errors[path] = str(error)
    results = {}
    if images:
        pixels = np.stack(list(images.values()))
        program.run(pixels[:1], threads=options.threads)  # kernels are compiled on first use
        begin = time.perf_counter()
        logits, stats = program.run(pixels, threads=options.threads)
        seconds = time.perf_counter() - begin
        total = stats.total
        results = dict(zip(images, logits, strict=True))
    names = program.classes or tuple(map(str, range(program.num_classes)))
    answers = []
    for path in options.images:
        answer = {"path": path, "classes": (), "probabilities": (), "error": errors.get(path)}
        if path in results:
            shares = np.exp(results[path] - results[path].max())
            shares /= shares.sum()
            best = np.argsort(-shares, kind="stable")[: options.top]
            answer["classes"] = tuple(names[k] for k in best)
            answer["probabilities"] = tuple(float(shares[k]) for k in best)
        answers.append(answer)
    code = show_answers(answers, as_json=options.json)
    if results and not options.json:
        say(
            f"{total.additions:,} additions, {total.skipped:.1%} of the dense work skipped, "
            f"no multiplication; {seconds / len(results) * 1e3:.1f} ms an image"
        )
    return code
