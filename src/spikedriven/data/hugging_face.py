"""Datasets of the Hugging Face hub, from a folder to which `save_to_disk` wrote one.

timm's reader asks the hub by name and keeps copies of its own; here only a folder is opened, so a
run needs no network and reads what lies there, at any place, as every other dataset of this room.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikedriven.data.config import DataConfig, DataInfo
from spikedriven.data.folder import PARTS, given_folder, image_info, only_name
from spikedriven.data.transforms import Part, check_headers
from spikedriven.errors import DataError

_SAVED = "what datasets.load_dataset(NAME).save_to_disk(DIR) leaves"

# Rows whose headers are looked at together: nothing is copied, only pages of the file are touched.
_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Cell:
    """An image file in a row of a table."""

    table: Any
    column: str
    row: int
    part: str

    def __str__(self) -> str:
        return f"row {self.row} of {self.part}"

    @property
    def name(self) -> str:
        """Its row, as rows have no other name."""
        return str(self.row)

    def read_bytes(self) -> bytes:
        """Return its content."""
        stored = self.table[self.row][self.column] or {}
        if stored.get("bytes") is None:
            return Path(stored.get("path") or "").read_bytes()
        content: bytes = stored["bytes"]
        return content


def open_hugging_face(
    config: DataConfig, root: Path | None
) -> tuple[DataInfo, Part, Part | None, Part]:
    """Open a saved dataset with one column of images and one of class labels.

    Its splits are train, validation and test; one whose labels are all hidden (-1, by custom of
    the hub) is passed over. Without a test split the validation split is tested, as in
    `open_folder`.

    Raises:
        DataError: The folder or a split is missing, there is no such column or more than one, or
            images are unreadable (all are counted, the first is named).
        ModuleNotFoundError: The package `datasets` is not installed.

    Cost: reads the beginning of every image once.
    """
    root = given_folder("hugging_face", root, _SAVED)
    import datasets

    try:
        saved = datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"{root} is no saved dataset ({reason}); it must hold {_SAVED}: save it so or pass "
            "another --data"
        ) from error
    if not isinstance(saved, datasets.DatasetDict):
        raise DataError(
            f"{root} holds a single split; it must hold {_SAVED}, with train and test: save them "
            "together"
        )
    parts: dict[str, tuple[Part, tuple[str, ...]]] = {}
    for part, names in PARTS.items():
        name = only_name(root, names, saved)
        if name is not None and (read := _read(saved[name], f"{root}/{name}")) is not None:
            parts[part] = read
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    for part in ("train", "test"):
        if part not in parts:
            raise DataError(
                f"{root} has no {part} split with labels, only {', '.join(saved)}; it must have "
                "train and one of test, validation: save it with them"
            )
    classes = parts["train"][1]
    if any(found != classes for _, found in parts.values()):
        raise DataError(
            f"the splits of {root} differ in their classes; all must have the same: save it again"
        )
    validation = parts["validation"][0] if "validation" in parts else None
    return image_info(root, classes, config), parts["train"][0], validation, parts["test"][0]


def _read(table: Any, part: str) -> tuple[Part, tuple[str, ...]] | None:
    """Return a split's images, labels and classes, or nothing where all labels are hidden."""
    import datasets

    column = _only(table, datasets.Image, part)
    label = _only(table, datasets.ClassLabel, part)
    labels = np.array(table[label][:], dtype=np.int64)
    if not len(labels) or (labels == -1).all():
        return None
    table = table.cast_column(column, datasets.Image(decode=False))
    cells = [Cell(table, column, row, part) for row in range(len(table))]
    check_headers(_contents(table, column, cells))
    return (cells, labels), tuple(table.features[label].names)


def _only(table: Any, kind: type, part: str) -> str:
    found = [name for name, feature in table.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(
            f"{part} has {len(found)} columns of {kind.__name__}; there must be one: choose it "
            "with select_columns, or make it with cast_column, and save again"
        )
    name: str = found[0]
    return name


def _contents(table: Any, column: str, cells: list[Cell]) -> Iterator[tuple[Cell, Any]]:
    """Yield every image with its content where the table holds it; nothing is copied for that."""
    import pyarrow

    arrows = table.select_columns(column).with_format("arrow")
    for begin in range(0, len(cells), _ROWS):
        for row, value in enumerate(arrows[begin : begin + _ROWS].column(column), begin):
            held = value.is_valid and value["bytes"].is_valid
            yield cells[row], pyarrow.BufferReader(value["bytes"].as_buffer()) if held else None
