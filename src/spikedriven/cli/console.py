"""How results look on a terminal, in a pipe, and as JSON."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wide enough for any line of ours: a pipe has no edge to wrap at.
PIPE_WIDTH = 1000


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Leave a reader that has gone to the command's entry, which ends in peace."""
        raise BrokenPipeError


def out() -> Console:
    """Return a console on standard output; plain text where that is no terminal."""
    return _Terminal(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def say(line: str = "") -> None:
    """Print one line; a command in it stays whole for copying."""
    out().print(line, markup=False, emoji=False, soft_wrap=True)


def command(*words: object) -> str:
    """Return a command line that works when it is typed here.

    Where `spikedriven` is not on the PATH (an environment that was not activated, as `make demo`
    leaves it), the program is named as this process was started.
    """
    program = Path(sys.argv[0])
    if shutil.which("spikedriven"):
        start = ["spikedriven"]
    elif program.name == "spikedriven":
        start = [str(program)]
    else:
        start = [sys.executable, "-m", "spikedriven"]
    return shlex.join([*start, *map(str, words)])


def show_json(value: object) -> None:
    """Print JSON and nothing else; NaN and infinity, which JSON does not have, are a defect."""
    print(json.dumps(value, indent=2, allow_nan=False))


def show_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; cells that are numbers align right, and text is folded, never cut."""
    cells = [list(map(str, row)) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, heading in enumerate(headings):
        numeric = all(row[column][:1].isdigit() or row[column] == "-" for row in cells)
        table.add_column(
            heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold"
        )
    for row in cells:
        table.add_row(*map(Text, row))
    out().print(table)


def show_rates(rates: Mapping[str, float]) -> None:
    """Print the share of neurons that fired, layer by layer."""
    say("Firing rate per layer (share of neurons, steps and images)")
    show_table(["layer", "rate"], [(name, f"{rate:.4f}") for name, rate in rates.items()])


def show_mistakes(mistakes: Sequence[tuple[str, str, int]]) -> None:
    """Print the most frequent confusions in words."""
    if not mistakes:
        say("No image was mistaken.")
        return
    say("Most frequent mistakes")
    for true, said, count in mistakes:
        say(f"  {true} taken for {said}: {count} image{'s' if count > 1 else ''}")


def show_answers(answers: Sequence[Mapping[str, Any]], *, as_json: bool) -> int:
    """Print what was said of image files, or why nothing was; return the exit code.

    Args:
        answers: For each file `path`, `classes` and `probabilities`, best first, and `error`.
        as_json: Print them as JSON.
    """
    errors = [answer["error"] for answer in answers if answer["error"] is not None]
    if as_json:
        show_json(answers)
    else:
        for answer in answers:
            if answer["error"] is None:
                pairs = zip(answer["classes"], answer["probabilities"], strict=True)
                say(f"{answer['path']}  " + "  ".join(f"{c} {p:.3f}" for c, p in pairs))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors and len(answers) > 1:
        print(f"error: {len(errors)} of {len(answers)} images could not be read", file=sys.stderr)
    return 2 if errors else 0
