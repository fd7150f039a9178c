"""The command `spikedriven`: its parser, and how errors are shown."""

import difflib
import errno
import os
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from spikedriven import __version__
from spikedriven.errors import SpikeDrivenError

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
CORE = ("torch", "numpy", "numba", "safetensors")
VERBS = ("train", "eval", "predict", "models", "doctor")


class _UsageError(SpikeDrivenError):
    """The command line cannot be understood."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> ArgumentParser:
    """Return the parser of every verb."""
    parser = _Parser(
        prog="spikedriven",
        description="Spike-driven Transformers: train, evaluate, predict.",
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, summary: str) -> Any:
        added = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.add_argument("--debug", action="store_true", help="show tracebacks")
        return added

    train = verb("train", "train a recipe, or continue a run")
    train.add_argument("recipe", nargs="?", help="a packaged recipe, or a .yaml file")
    train.add_argument("settings", nargs="*", metavar="key=value", help="schedule.epochs=3")
    train.add_argument("--data", metavar="DIR", help="folder of the dataset")
    train.add_argument("--run", metavar="DIR", help="folder to make; default runs/RECIPE")
    train.add_argument("--resume", metavar="RUN", help="continue this run")

    evaluate = verb("eval", "evaluate a run")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument("--data", metavar="DIR", help="folder of the dataset")
    evaluate.add_argument("--split", default="test", help="test or validation")
    evaluate.add_argument("--weights", help="last or best; default: the recipe's")

    predict = verb("predict", "classify image files")
    predict.add_argument("run", metavar="RUN")
    predict.add_argument("images", metavar="IMAGE", nargs="+")
    predict.add_argument("--top", type=int, default=5, help="classes to name for each image")

    models = verb("models", "list the published sizes")
    doctor = verb("doctor", "say what is installed and what is missing")
    for added in (evaluate, predict, models, doctor):
        added.add_argument("--json", action="store_true", help="print JSON only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 ok, 1 a check failed, 2 bad usage or input."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        options = parse([word for word in words if word != "--debug"])
        if options.verb is None:
            build_parser().print_help()
            return OK
        return int(import_module(f"spikedriven.cli.{options.verb}").run(options))
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except SpikeDrivenError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), BAD_INPUT)
    except ModuleNotFoundError as error:
        if debug or (error.name or "").startswith("spikedriven"):
            traceback.print_exc()
        return _fail(
            f"the package {error.name} is not installed; this command needs it: "
            + ("pip install " + ("spikedriven" if error.name in CORE else '"spikedriven[train]"')),
            BAD_INPUT,
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        if debug:
            traceback.print_exc()
        where = f" {error.filename}" if error.filename else ""
        need = "there must be room: free some space"
        if error.errno != errno.ENOSPC:
            need = "it must be accessible: check the path"
        return _fail(f"{error.strerror or error}{where}; {need}", BAD_INPUT)
    except Exception as error:  # noqa: BLE001 - the last line of defence; --debug shows all
        if debug:
            traceback.print_exc()
        reason = (str(error).splitlines() or ["no message"])[0]
        return _fail(
            f"unexpected {type(error).__name__} ({reason}); this is a defect: "
            "run again with --debug and report what it prints",
            BAD_INPUT,
        )


def parse(words: list[str]) -> Namespace:
    """Return the options of a command line, or say what is wrong with it."""
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        close = difflib.get_close_matches(words[0], VERBS, n=1)
        cure = f"did you mean {close[0]}?" if close else "see spikedriven --help"
        raise _UsageError(
            f"there is no verb {words[0]!r}; the verbs are {', '.join(VERBS)}: {cure}"
        )
    parser = build_parser()
    options, rest = parser.parse_known_args(words)
    # argparse stops collecting key=value at the first option; what follows it comes out as rest.
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    foreign = [word for word in rest if word not in settings]
    if foreign or (settings and options.verb != "train"):
        raise _UsageError(
            f"{' '.join(foreign or settings)} is not understood; every word must be one that "
            f"spikedriven {options.verb} --help lists: correct or remove it"
        )
    if settings:
        options.settings += settings
    return options


def _fail(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


def entry() -> NoReturn:
    """Run as a console script, quiet where the reader of a pipe has gone."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OK
    raise SystemExit(code)
