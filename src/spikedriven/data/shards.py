"""Images in shards, as the webdataset library packs them: tar files that many readers share.

A sample is the members of one shard whose names agree up to the first dot: an image and `.cls`,
its label as a number. timm's reader and webdataset's stream shards in the order in which they lie,
pass over what they cannot read, and give to several processes as many samples as happen to fall to
each. Here a shard is indexed once and then read at any place, so that samples, order and counts
are those of every other dataset of this room; and a format this plain needs no library.
"""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spikedriven.data.config import DataConfig, DataInfo
from spikedriven.data.folder import PARTS, SUFFIXES, given_folder, image_info
from spikedriven.data.transforms import Part, opened
from spikedriven.errors import DataError

_LAYOUT = "shards such as train-0000.tar or train/0000.tar, and the same of test or validation"
_END = bytes(tarfile.BLOCKSIZE)
"""What every tar file ends with, at least once: without it members may be missing."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar file."""

    shard: Path
    name: str
    begin: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    def read_bytes(self) -> bytes:
        """Return its content; the shard is open for that long only, so any process may read."""
        with self.shard.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.size)


@dataclass(slots=True)
class _Sample:
    images: list[Member] = field(default_factory=list)
    label: str | None = None
    fault: str | None = None
    """What is wrong with an image of it."""

    def problem(self) -> str | None:
        """Say why it cannot be used, if it cannot."""
        if len(self.images) != 1:
            return "no image" if not self.images else "two images"
        if self.fault is not None:
            return self.fault
        if self.label is None:
            return "no .cls"
        if not re.fullmatch(r"\d{1,9}", self.label):
            return f"its label is {self.label[:20]!r}, no number"
        return None


def open_shards(config: DataConfig, root: Path | None) -> tuple[DataInfo, Part, Part | None, Part]:
    """Open a folder of shards, divided by their names into train, validation and test.

    Where `classnames.txt` lies beside them, it names the classes, one a line; else a class is
    called by its number. Where timm's `_info.json` does, the shards must be those that it lists.
    Without a test part the validation part is tested, as in `open_folder`.

    Raises:
        DataError: The folder, a part or a listed shard is missing, a shard is cut or damaged, or
            samples cannot be used (all are counted, the first is named).

    Cost: reads every header of every shard once, and the beginning of every image.
    """
    root = given_folder("webdataset", root, _LAYOUT)
    shards = _divided(root)
    names = root / "classnames.txt"
    indices = {path: _index(path) for paths in shards.values() for path in paths}
    _check_listed(root, {path: len(index) for path, index in indices.items()})
    parts = {part: _part({path: indices[path] for path in paths}) for part, paths in shards.items()}
    train, validation, test = (parts.get(part) for part in PARTS)
    if test is None:
        validation, test = None, validation
    if train is None or test is None:
        raise DataError(
            f"{root} has no {'train' if train is None else 'test'} shards; it must hold {_LAYOUT}: "
            "name them so or pass another --data"
        )
    if names.is_file():
        classes = _named(names)
    else:
        classes = tuple(map(str, range(int(train[1].max()) + 1)))
        missing = set(range(len(classes))) - set(train[1].tolist())
        if missing:
            raise DataError(
                f"{root} has labels up to {len(classes) - 1} and none of its train shards has "
                f"{min(missing)}; every class must have an image: add images, or name all classes "
                f"in {names.name}, one a line"
            )
    return image_info(root, classes, config), train, validation, test


def _named(file: Path) -> tuple[str, ...]:
    """Return the names that stand in a file, one a line."""
    problem, names = None, dict[str, int]()
    try:
        for line, name in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not name.strip():
                problem = problem or f"line {line} is empty"
            elif names.setdefault(name, line) != line:
                problem = problem or f"{name!r} stands twice"
    except UnicodeDecodeError:
        problem = "it is no UTF-8 text"
    if problem is not None:
        raise DataError(
            f"{file} cannot be used ({problem}); it must hold the name of every class, one a line: "
            "correct or remove it"
        )
    return tuple(names)


def _divided(root: Path) -> dict[str, list[Path]]:
    """Return the shards of each part, told by the words in their names."""
    shards: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(root.rglob("*.tar")):
        words = set(re.split(r"[^a-z]+", str(path.relative_to(root)).lower()))
        found = [part for part, names in PARTS.items() if words & set(names)]
        if len(found) != 1:
            raise DataError(
                f"{path} belongs to {' and '.join(found) or 'no part'} by its name; it must hold "
                "one of the words train, validation, test: rename it"
            )
        shards[found[0]].append(path)
    return shards


def _check_listed(root: Path, counts: Mapping[Path, int]) -> None:
    """Hold the shards to what `_info.json` says of them; a split may be absent as a whole."""
    path = root / "_info.json"
    if not path.is_file():
        return
    try:
        listed = [
            {root / name: count for name, count in zip(*lists, strict=True)}
            for split in json.loads(path.read_text(encoding="utf-8"))["splits"].values()
            for lists in [(split["filenames"], split["shard_lengths"])]
        ]
    except (
        OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path} cannot be understood ({error!r}); it must list the shards of each split and "
            "their lengths: copy it again or remove it"
        ) from error
    for split in listed:
        for shard, count in split.items() if split.keys() & counts.keys() else ():
            if counts.get(shard, 0) != count:
                raise DataError(
                    f"{shard} has {counts.get(shard, 0)} of the {count} samples that {path.name} "
                    "says; it must have all: copy it again"
                )


def _part(shards: Mapping[Path, Mapping[str, _Sample]]) -> Part:
    samples = {
        f"{path}:{key}": sample for path, index in shards.items() for key, sample in index.items()
    }
    problems = {name: problem for name, sample in samples.items() if (problem := sample.problem())}
    if problems:
        first, problem = next(iter(problems.items()))
        raise DataError(
            f"{len(problems)} of {len(samples)} samples cannot be used, the first being {first} "
            f"({problem}); each must be a readable image beside a .cls with its number: repair or "
            "remove them"
        )
    labels = np.array([int(sample.label or "") for sample in samples.values()], dtype=np.int64)
    if not len(labels):
        raise DataError(
            f"{next(iter(shards))} holds no sample, nor does another of its part; there must be "
            "some: copy it again"
        )
    return [sample.images[0] for sample in samples.values()], labels


def _index(path: Path) -> dict[str, _Sample]:
    """Return a shard's samples by their keys, in the order in which they lie."""
    samples: dict[str, _Sample] = defaultdict(_Sample)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not (member.isreg() and stem and dot):
                    continue
                content = tar.extractfile(member)
                assert content is not None
                sample, suffix = samples[folder + slash + stem], suffix.lower()
                if suffix == "cls":
                    sample.label = content.read().decode("utf-8", "replace").strip()
                elif f".{suffix.rpartition('.')[2]}" in SUFFIXES:
                    place = Member(path, member.name, member.offset_data, member.size)
                    sample.images.append(place)
                    try:
                        with opened(place, content):
                            pass
                    except DataError as error:
                        sample.fault = str(error)
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            whole = file.read(len(_END)) == _END
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{path} cannot be read as a shard ({error}); it must be a whole tar file, not "
            "compressed: copy it again"
        ) from error
    if not whole:
        raise DataError(
            f"{path} is cut or damaged behind byte {end}; it must be a whole tar file: copy it "
            "again"
        )
    return samples
