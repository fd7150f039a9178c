"""`spikedriven stream`: one file, one time step at a time, an answer after each."""

from argparse import Namespace
from typing import Any

from spikedriven.cli.console import say, show_json
from spikedriven.cli.program import answer, check_top, open_program, read_shown
from spikedriven.errors import ConfigError


def run(options: Namespace) -> int:
    """Push frames until they end or the leading class is sure enough."""
    check_top(options.top)
    if not 0 < options.confidence <= 1:
        raise ConfigError(
            f"--confidence is {options.confidence}; it must lie in (0, 1]: 0.9 stops when one "
            "class has nine tenths, 1 never stops"
        )
    program = open_program(options.program)
    pixels = read_shown(options.file, program.input)
    num_steps = program.input.num_steps
    frames = pixels if pixels.ndim == 4 else [pixels] * num_steps  # an image is shown again
    stream = program.stream(threads=options.threads)
    steps: list[dict[str, Any]] = []
    for t, frame in enumerate(frames, start=1):
        said = {"step": t, **answer(program, stream.push(frame[None])[0], options.top)}
        steps.append(said)
        if not options.json:
            pairs = zip(said["classes"], said["probabilities"], strict=True)
            say(f"step {t}  " + "  ".join(f"{name} {share:.3f}" for name, share in pairs))
        if options.confidence < 1 and said["probabilities"][0] >= options.confidence:
            break
    if options.json:
        show_json({"path": options.file, "of_steps": num_steps, "steps": steps})
    elif len(steps) < num_steps:
        say(f"Sure enough after {len(steps)} of {num_steps} steps.")
    return 0
