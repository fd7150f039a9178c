"""`spikedriven run`: what a compiled program says about files, and what it cost."""

import time
from argparse import Namespace

import numpy as np

from spikedriven.cli.console import say, show_answers
from spikedriven.cli.program import answer, check_top, open_program, read_shown
from spikedriven.errors import DataError


def run(options: Namespace) -> int:
    """Classify every readable image or recording; exit 2 where one was not."""
    check_top(options.top)
    program = open_program(options.program)
    shown, errors = {}, {}
    for path in options.images:
        try:
            shown[path] = read_shown(path, program.input)
        except DataError as error:
            errors[path] = str(error)
    results = {}
    if shown:
        pixels = np.stack(list(shown.values()))
        program.run(pixels[:1], threads=options.threads)  # kernels are compiled on first use
        begin = time.perf_counter()
        logits, stats = program.run(pixels, threads=options.threads)
        seconds = time.perf_counter() - begin
        total = stats.total
        results = dict(zip(shown, logits, strict=True))
    answers = []
    for path in options.images:
        said = {"path": path, "classes": (), "probabilities": (), "error": errors.get(path)}
        if path in results:
            said |= answer(program, results[path], options.top)
        answers.append(said)
    code = show_answers(answers, as_json=options.json)
    if results and not options.json:
        say(
            f"{total.additions:,} additions, {total.skipped:.1%} of the dense work skipped, "
            f"no multiplication; {seconds / len(results) * 1e3:.1f} ms an image"
        )
    return code
