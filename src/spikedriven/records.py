"""One measured number with its passport, and files that are written whole or not at all."""

import contextlib
import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from spikedriven.errors import CheckpointError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One measured number, with everything needed to measure it again."""

    metric: str
    """What the number is, e.g. `test_accuracy`."""
    value: float
    """The number."""
    unit: str
    """Its unit; `1` for a ratio or a fraction."""
    subject: str
    """What was measured: model, dataset and split, layer."""
    count: int
    """How many samples (images, runs) the value rests on."""
    command: str
    """The command line that produced it."""
    commit: str
    """The commit of the code; ends in `+` where files differed from it."""
    device: str
    """The machine, in words."""
    context: dict[str, float | int | str] = field(default_factory=dict)
    """Whatever else a reader needs: seed, batch size, versions, spread."""


def this_command() -> str:
    """Return the command line of this process, without the folders of this machine.

    Of an absolute path only the last name is told: the rest says nothing elsewhere.
    """
    program, *arguments = sys.argv
    name, folder = Path(program).name, Path(program).parent.name
    if name == "__main__.py":  # python -m
        shown = folder
    else:
        shown = f"python {folder}/{name}" if name.endswith(".py") else name
    told = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return " ".join([shown, *map(shlex.quote, told)])


def this_commit(folder: Path | None = None) -> str:
    """Return the short commit of a checkout, `+` appended if files differ from it; else `unknown`.

    Args:
        folder: A folder inside the checkout. Default: the folder of this file.
    """
    where = folder or Path(__file__).parent
    git = ["git", "-C", str(where), "describe", "--always", "--abbrev=12", "--exclude=*"]
    try:
        described = subprocess.run([*git, "--dirty=+"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def this_device() -> str:
    """Return the processor in words, e.g. `AMD EPYC (family 25, model 17), 2 cores`.

    Family and model, where Linux tells them, because virtual machines give one name to processors
    of which one is twice as fast as the other.
    """
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = [line.partition(":") for line in cpuinfo.read_text().split("\n\n")[0].splitlines()]
        told = {key.strip(): value.strip() for key, _, value in pairs}
        name = told.get("model name", name)
        if "cpu family" in told and "model" in told:
            name += f" (family {told['cpu family']}, model {told['model']})"
    return f"{name}, {os.cpu_count()} cores"


def measured(
    metric: str, value: float, unit: str, subject: str, count: int, **context: float | str
) -> Record:
    """Return a number that this process measured, with its passport; the arguments are fields."""
    return Record(
        metric=metric,
        value=value,
        unit=unit,
        subject=subject,
        count=count,
        command=this_command(),
        commit=this_commit(),
        device=this_device(),
        context=context,
    )


def keep_records(
    path: Path,
    records: Iterable[Record],
    *,
    instead_of: Callable[[Record], bool] = lambda _record: False,
) -> None:
    """Add records to a `.jsonl` file; older ones of the same metric, subject and device go.

    Args:
        path: The file; it need not exist.
        records: What was measured.
        instead_of: Which others of the same device go too, because they belong to a comparison
            that was made anew as a whole.

    Raises:
        DataError: A line of the file is not a record.
        CheckpointError: The file cannot be written; it stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    added = list(records)
    devices = {record.device for record in added}
    before = [
        record
        for record in (read_records(path) if path.exists() else ())
        if record.device not in devices or not instead_of(record)
    ]
    kept: dict[tuple[str, str, str], Record] = {}
    for record in [*before, *added]:
        key = (record.metric, record.subject, record.device)
        kept.pop(key, None)  # the newest stands last
        kept[key] = record
    lines = [json.dumps(asdict(record)) + "\n" for record in kept.values()]
    write_whole(path, "".join(lines).encode())


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append records to a `.jsonl` file, one line each; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record)) + "\n")


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a `.jsonl` file in order.

    Raises:
        DataError: The file is not text, or a line is not a record.
    """
    known = {f.name for f in fields(Record)}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); every line must be "
            "one record in JSON: name a file of records"
        ) from error
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            told = getattr(error, "msg", "it cannot be read")
            raise DataError(
                f"line {number} of {path} is not JSON ({told}); "
                "every line must be one record: delete that line"
            ) from error
        if not isinstance(entry, dict) or set(entry) != known:
            raise DataError(
                f"line {number} of {path} is not a record; it must have the keys "
                f"{', '.join(sorted(known))}: delete that line"
            )
        for name, kinds in _KINDS.items():
            if not isinstance(entry[name], kinds) or isinstance(entry[name], bool):
                raise DataError(
                    f"line {number} of {path} has the {name} {json.dumps(entry[name])[:40]}; it "
                    f"must be a {_IN_WORDS[kinds]}: delete that line"
                )
        yield Record(**entry)


_IN_WORDS: dict[tuple[type, ...], str] = {
    (int, float): "number",
    (int,): "whole number",
    (str,): "text",
    (dict,): "table",
}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("metric", "unit", "subject", "command", "commit", "device"), (str,)),
    "value": (int, float),
    "count": (int,),
    "context": (dict,),
}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file such that at every moment it is either the old one or the new one, whole.

    Args:
        path: File to write; its folder must exist. Where it is a link, the file behind it is meant.
        content: All of its bytes.

    Raises:
        CheckpointError: The file cannot be written (disk full, no permission), or what stands there
            is no file; the old one stays.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        if target.exists() and not target.is_file():  # root could replace even a device
            kind = "a folder" if target.is_dir() else "no file"
            raise CheckpointError(
                f"{path} could not be written (it is {kind}) and is left as it was; a file must be "
                "able to take its place: choose another name"
            )
        with temporary.open("xb") as file:  # with the permissions of any new file
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be written ({error.strerror}) and is left as it was; the folder "
            "must be writable and have room: free some space or choose another folder"
        ) from error
