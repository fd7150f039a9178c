"""The command `spikedriven`: its parser, and how errors are shown."""

import difflib
import errno
import os
import re
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from spikedriven import __version__
from spikedriven.errors import ConfigError, SpikeDrivenError, in_words
from spikedriven.train.rank import this_rank

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
CORE = ("torch", "numpy", "numba", "safetensors", "rich", "jaxtyping", "jsonargparse", "yaml")
EXTRAS = {
    "matplotlib": "report",
    **dict.fromkeys(("huggingface_hub", "nir", "onnx", "onnxscript"), "export"),
    "datasets": "huggingface",
}  # package -> extra; all others come with `train`
VERBS = (
    "train", "eval", "predict", "energy", "compile", "run", "stream", "bench", "audit", "conform",
    "report", "export", "models", "doctor",
)  # fmt: skip


class _UsageError(SpikeDrivenError):
    """The command line cannot be understood."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        of_kind = re.fullmatch(r"argument (.+): invalid (int|float) value: (.+)", message)
        if of_kind:
            name, kind, value = of_kind.groups()
            wanted = in_words({"int": int, "float": float}[kind])
            raise _UsageError(f"{name} is {value}; it must be {wanted}: see {self.prog} --help")
        raise _UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> ArgumentParser:
    """Return the parser of every verb."""
    parser = _Parser(
        prog="spikedriven",
        description="Spike-driven Transformers: train, evaluate, predict, compile, run.",
        epilog="Exit code: 0 ok, 1 a check failed, 2 bad usage or input.",
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(parser=parser)  # the one that --help speaks for; a verb puts its own here
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(name: str, summary: str) -> Any:
        added = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.add_argument("--debug", action="store_true", help="show tracebacks")
        added.set_defaults(parser=added)
        return added

    train = verb("train", "train a recipe, or continue a run")
    train.add_argument("recipe", nargs="?", help="a packaged recipe, or a .yaml file")
    train.add_argument("settings", nargs="*", metavar="key=value", help="schedule.epochs=3")
    train.add_argument("--data", metavar="DIR", help="folder of the dataset")
    train.add_argument("--run", metavar="DIR", help="folder to make; default runs/RECIPE")
    train.add_argument("--seeds", metavar="0,1,2", help="train once with each; mean and deviation")
    train.add_argument("--resume", metavar="RUN", help="continue this run")

    evaluate = verb("eval", "evaluate a run")
    evaluate.add_argument("run", metavar="RUN")
    evaluate.add_argument(  # with a default, a missing RUN is not told as a missing key=value
        "settings", nargs="*", default=[], metavar="key=value", help="data.image_size=288"
    )
    evaluate.add_argument("--data", metavar="DIR", help="folder of the dataset")
    evaluate.add_argument("--split", default="test", help="test or validation")
    evaluate.add_argument("--weights", help="last or best; default: the recipe's")

    predict = verb("predict", "classify image files, or recordings of events")
    predict.add_argument("run", metavar="RUN")
    predict.add_argument("images", metavar="FILE", nargs="+")
    predict.add_argument("--weights", help="last or best; default: the recipe's")
    predict.add_argument("--top", type=int, default=5, help="classes to name for each image")

    energy = verb("energy", "charge what a run or a table of firing rates computes, in joules")
    energy.add_argument("run", metavar="RUN|MODEL", nargs="?", help="a run, or a published size")
    energy.add_argument("--model", metavar="NAME", help="a published size, with --rates")
    energy.add_argument("--rates", metavar="FILE", help="firing rates: a .csv or a packaged table")
    energy.add_argument("--size", type=int, help="side of the image in pixels, with --rates")
    energy.add_argument("--steps", type=int, help="time steps of the rates, with --rates")
    energy.add_argument("--data", metavar="DIR", help="folder of the run's dataset")
    energy.add_argument("--images", type=int, help="test images to count; default: all")
    energy.add_argument("--checkpoint", help="last or best; default: the recipe's")
    energy.add_argument("--convention", help="published, executed or memory; default: all")
    energy.add_argument("--image", default="once", help="first layer: once, repeated or bits")
    energy.add_argument("--costs", default="float32", help="float32, int16, int8, or a .toml file")
    energy.add_argument("--by", default="part", help="rows: part, block or layer")
    energy.add_argument("--csv", action="store_true", help="print every line of account as CSV")
    energy.add_argument("--records", metavar="FILE", help="append totals to this .jsonl file")

    compiled = verb("compile", "turn a run into a program that only adds")
    compiled.add_argument("run", metavar="RUN")
    compiled.add_argument("-o", "--output", metavar="FILE", help="default: RUN-WEIGHTS.spk")
    compiled.add_argument("--weights", default="int16", help="int16 (faithful) or int8 (fast)")
    compiled.add_argument("--checkpoint", help="last or best; default: the recipe's")

    execute = verb("run", "classify files with a compiled program")
    execute.add_argument("program", metavar="FILE.spk")
    execute.add_argument("images", metavar="FILE", nargs="+")
    execute.add_argument("--top", type=int, default=5, help="classes to name for each image")
    execute.add_argument("--threads", type=int, help="default: all of the processor's")

    streamed = verb("stream", "show a program one file, a time step at a time")
    streamed.add_argument("program", metavar="FILE.spk")
    streamed.add_argument("file", metavar="FILE", help="a recording of events, or an image")
    streamed.add_argument(
        "--confidence", type=float, default=1.0, help="share of the first class that stops"
    )
    streamed.add_argument("--top", type=int, default=3, help="classes to name after each step")
    streamed.add_argument("--threads", type=int, help="default: all of the processor's")

    bench = verb("bench", "compare the engine with the float model")
    bench.add_argument("what", choices=["engine"], help="what to measure")
    bench.add_argument("run", metavar="RUN")
    bench.add_argument("--data", metavar="DIR", help="folder of the dataset")
    bench.add_argument("--images", type=int, default=360, help="test images to classify")
    bench.add_argument("--batch", type=int, default=1, help="images given at once")
    bench.add_argument("--threads", type=int, help="default: all of the processor's")

    audit = verb("audit", "look for anything but spikes where there must be nothing else")
    audit.add_argument("subject", metavar="RUN|MODEL", nargs="?", help="a run, or a model's name")
    audit.add_argument("--engine", action="store_true", help="the engine's machine code instead")
    audit.add_argument("--data", metavar="DIR", help="folder of the run's dataset")
    audit.add_argument("--checkpoint", help="last or best; default: the recipe's")

    conform = verb("conform", "ask a run or a model to keep every rule of the package")
    conform.add_argument("subject", metavar="RUN|MODEL", help="a run, or a model's name")
    conform.add_argument("--data", metavar="DIR", help="folder of the run's dataset")
    conform.add_argument("--checkpoint", help="last or best; default: the recipe's")

    report = verb("report", "draw records as one HTML page")
    report.add_argument(
        "records", metavar="RECORDS", nargs="+", help="a .jsonl file, a folder of them, or a run"
    )
    report.add_argument("-o", "--output", metavar="FILE", default="report.html")

    exported = verb("export", "write a run's model in another program's format")
    exported.add_argument("run", metavar="RUN")
    exported.add_argument("--format", default="onnx", help="onnx, nir, or hub: a folder")
    exported.add_argument("-o", "--output", metavar="FILE", help="default: RUN-FORMAT")
    exported.add_argument("--checkpoint", help="last or best; default: the recipe's")

    models = verb("models", "list the published sizes")
    doctor = verb("doctor", "say what is installed and what is missing")
    asked = (
        evaluate,
        predict,
        energy,
        compiled,
        execute,
        streamed,
        bench,
        audit,
        conform,
        report,
        exported,
    )
    for added in (*asked, models, doctor):
        added.add_argument("--json", action="store_true", help="print JSON only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 ok, 1 a check failed, 2 bad usage or input."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    follows = words[:1] == ["train"] and _follows()  # as it ends, Lightning tidies what says so
    try:
        options = parse(words)
        if options.verb is None:
            build_parser().print_help(sys.stderr)
            return BAD_INPUT
        return int(import_module(f"spikedriven.cli.{options.verb}").run(options))
    except KeyboardInterrupt:
        return INTERRUPTED if follows else _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader has gone: no mistake of anyone's
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence; --debug shows all
        if "--debug" in given:
            traceback.print_exc()
        if follows and not getattr(error, "of_this_process", False):
            return BAD_INPUT  # of several training processes the first speaks for all
        return _fail(_sentence(error), BAD_INPUT)


def _follows() -> bool:
    """Return whether this is one of several processes and not the first."""
    try:
        return this_rank() > 0
    except ConfigError:  # the very thing that is to be said
        return False


def _sentence(error: Exception) -> str:
    """Say what is, what must be and what to do."""
    first_line = next(iter(str(error).splitlines()), "no message")
    if isinstance(error, SpikeDrivenError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get(str(error.name), "train")
        return f"the package {error.name} is not installed; this command needs it: pip install " + (
            "spikedriven" if error.name in CORE else f'"spikedriven[{extra}]"'
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full{_where(error)}; it must have room: free some space"
    if isinstance(error, OSError):
        what = error.strerror or first_line
        return f"{what}{_where(error)}; it must be accessible: check the path and its permissions"
    # torch, which is not imported here, has its own words for the same thing.
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in first_line
    if isinstance(error, MemoryError) or out_of_memory:
        return (
            "memory ran out; the model and a batch must fit into it: lower data.batch_size, "
            "data.image_size, model.num_steps or model.width"
        )
    return (
        f"unexpected {type(error).__name__} ({first_line}); this is a defect: "
        "run again with --debug and report what it prints"
    )


def _where(error: OSError) -> str:
    return f" at {error.filename}" if error.filename else ""


def parse(words: list[str]) -> Namespace:
    """Return the options of a command line, or say what is wrong with it."""
    if words and not words[0].startswith("-") and words[0] not in VERBS:
        close = difflib.get_close_matches(words[0], VERBS, n=1)
        cure = f"did you mean {close[0]}?" if close else "see spikedriven --help"
        raise _UsageError(
            f"there is no verb {words[0]!r}; the verbs are {', '.join(VERBS)}: {cure}"
        )
    for before, word in zip(["", *words], words, strict=False):
        option = before if word == "" else word[:-1]
        if word == "" or (word.startswith("--") and word.endswith("=")):
            named = option if option.startswith("-") else "a word of the command"
            raise _UsageError(f"{named} is empty; it must say something: leave it out or fill it")
    options, rest = build_parser().parse_known_args(words)
    # argparse stops collecting words at the first option; those behind it come out as rest.
    foreign = [word for word in rest if word.startswith("-") or not _collect(word, options)]
    if foreign:
        raise _UsageError(
            f"{foreign[0]} is not understood; every word must be one that "
            f"{options.parser.prog} --help lists: {_nearest_option(foreign[0], options)}"
        )
    return options


def _collect(word: str, options: Namespace) -> bool:
    """Add a late word to the list it belongs to; return whether there is one."""
    if options.verb in ("train", "eval") and "=" in word:
        options.settings.append(word)
    elif options.verb in ("predict", "run"):
        options.images.append(word)
    elif options.verb == "report":
        options.records.append(word)
    else:
        return False
    return True


def _nearest_option(word: str, options: Namespace) -> str:
    known = re.findall(r"--[a-z]+", options.parser.format_help())
    close = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"did you mean {close[0]}?" if close else "correct or remove it"


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
