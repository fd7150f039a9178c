"""Where records lie: files of them, folders of such files, and the folder of a training run."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from spikedriven.errors import DataError
from spikedriven.records import Record, read_records

Number = TypeVar("Number", int, float)

_CURVES = {
    "accuracy": "training_accuracy_at_step",
    "validation_accuracy": "validation_accuracy_at_step",
}


def gather(paths: Sequence[Path]) -> list[Record]:
    """Return the records of files and folders, in order.

    Beside `records.jsonl` a run's `metrics.csv` is read too, and beside `NAME.jsonl` a
    `NAME_curve.csv`: every accuracy in it becomes a record with the run's passport.

    Args:
        paths: `.jsonl` files, or folders that hold some.

    Raises:
        DataError: A path does not exist, holds no records, or a line is not one.
    """
    records: list[Record] = []
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise DataError(
                f"{path} holds no records; it must be a .jsonl file or a folder of them: name "
                "benchmarks/results, or the folder of a finished run"
            )
        for file in files:
            found = list(read_records(file))
            records += found
            is_run = file.name == "records.jsonl"
            table = file.with_name("metrics.csv" if is_run else f"{file.stem}_curve.csv")
            if found and table.is_file():
                records += _curve(table, found[-1])
    return records


def of_newest_machine(records: Iterable[Record]) -> list[Record]:
    """Return what the machine of the last record measured, the newest of each metric and subject.

    Times of two machines do not belong into one picture.
    """
    listed = list(records)
    newest: dict[tuple[str, str], Record] = {}
    for record in listed:
        if record.device == listed[-1].device:
            newest[record.metric, record.subject] = record
    return list(newest.values())


def _curve(table: Path, passport: Record) -> list[Record]:
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table} cannot be read as CSV ({error}); it must be a run's table of metrics: "
            "restore it, or move it away"
        ) from error
    records = []
    for row in rows:
        for column, metric in _CURVES.items():
            if row.get(column) and row.get("step") and row.get("epoch"):
                place = {"step": _number(table, row, "step", int)}
                place["epoch"] = _number(table, row, "epoch", int)
                records.append(
                    replace(
                        passport,
                        metric=metric,
                        value=_number(table, row, column, float),
                        unit="1",
                        count=1,
                        context={**passport.context, **place},
                    )
                )
    return records


def _number(table: Path, row: dict[str, str], column: str, kind: type[Number]) -> Number:
    try:
        return kind(row[column])
    except ValueError as error:
        raise DataError(
            f"{table} has the {column} {row[column][:40]!r}; it must be a number: correct it, or "
            "move the file away"
        ) from error
