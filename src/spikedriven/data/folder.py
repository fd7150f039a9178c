"""Any folder of images: train/CLASS/*.png, test/CLASS/*.png and, if there is one, validation/."""

import errno
from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spikedriven.data.config import DataConfig, DataInfo
from spikedriven.data.transforms import check_headers
from spikedriven.errors import DataError

SUFFIXES = frozenset(Image.registered_extensions())
_LAYOUT = "train/CLASS/*.png (or any image) beside test/CLASS/*.png and, if wanted, validation/"
PARTS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""What a part may be called."""

Files = tuple[list[Path], NDArray[np.int64]]


def open_folder(
    config: DataConfig, root: Path | None
) -> tuple[DataInfo, Files, Files | None, Files]:
    """Open a folder of colour images in classes; every file's header is read once.

    Raises:
        DataError: The folder or a class is missing or empty, parts differ in their classes, there
            are two validation folders, or files lie beside the class folders or are no images (all
            are counted, the first is named).
    """
    root = given_folder("image_folder", root, _LAYOUT)
    train, validation, test = (_part_folder(root, names) for names in PARTS.values())
    if test is None:  # ImageNet's custom: the published test split is called val
        validation, test = None, validation
    if train is None or test is None:
        raise DataError(
            f"{root} has no {'train' if train is None else 'test'} folder; it must hold {_LAYOUT}: "
            "arrange it so or pass another --data"
        )
    classes = _classes(train)
    parts = [
        None if folder is None else _files(folder, classes) for folder in (train, validation, test)
    ]
    check_headers((path, None) for part in parts if part is not None for path in part[0])
    assert parts[0] is not None
    assert parts[2] is not None
    return image_info(root, classes, config), parts[0], parts[1], parts[2]


def image_info(root: Path, classes: tuple[str, ...], config: DataConfig) -> DataInfo:
    """Describe colour images in files, which are read as the config says."""
    return DataInfo(
        name=root.resolve().name,
        classes=classes,
        in_channels=3,
        image_size=config.image_size or 224,
        mean=(0.485, 0.456, 0.406),  # ImageNet's
        std=(0.229, 0.224, 0.225),
        crop=config.crop,
        interpolation=config.interpolation,
    )


def locate(name: str, root: Path | None, wanted: tuple[str, ...]) -> Path:
    """Return the first of `root / wanted` that exists, or say what is missing."""
    choices = " or ".join(wanted)
    root = given_folder(name, root, choices)
    for layout in wanted:
        if (root / layout).exists():
            return root / layout
    raise DataError(
        f"{name} was not found: {root} must hold {choices}: "
        "put the files there or pass another --data"
    )


def given_folder(name: str, root: Path | None, holds: str) -> Path:
    """Return the folder of a dataset's files, once it is one that may be read.

    Args:
        name: The dataset, of `list_datasets()`.
        root: What was given.
        holds: What must lie there, for a person.

    Raises:
        DataError: None was given, or it is missing, a file, or unreadable.
    """
    if root is None:
        raise DataError(
            f"{name} lies in files of yours and no folder was given; it must hold {holds}: "
            "pass --data DIR"
        )
    try:
        next(root.iterdir(), root).lstat()
    except OSError as error:
        reason, cure = {
            errno.ENOENT: ("is missing", ""),
            errno.ENOTDIR: ("is a file", ""),
            errno.EACCES: ("may not be read", "allow it or "),
        }.get(error.errno or 0, (f"cannot be read ({error.strerror})", ""))
        raise DataError(
            f"{root} {reason}; it must be a folder that holds {holds}: {cure}pass another --data"
        ) from error
    return root


def only_name(root: Path, names: tuple[str, ...], there: Container[str]) -> str | None:
    """Return which of the names that a part may have is there, if one is.

    Raises:
        DataError: Two are.
    """
    found = [name for name in names if name in there]
    if len(found) > 1:
        raise DataError(
            f"{root} has both {found[0]} and {found[1]}; it must hold one of them: put all images "
            "into one or remove the other"
        )
    return found[0] if found else None


def _part_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    name = only_name(root, names, {path.name for path in root.iterdir() if path.is_dir()})
    return None if name is None else root / name


def _shown(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name, without what is hidden: caches of other programs."""
    folder = given_folder("image_folder", folder, "images in classes")
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _classes(folder: Path) -> tuple[str, ...]:
    entries = _shown(folder)
    loose = [path.name for path in entries if not path.is_dir()]
    if loose:
        raise DataError(
            f"{len(loose)} files lie in {folder} beside its class folders, the first being "
            f"{loose[0]}; every image must lie in a class: move or remove them"
        )
    classes = tuple(path.name for path in entries)
    if not classes:
        raise DataError(
            f"{folder} has no class folders; it must hold one folder of images for each class: "
            "arrange it so"
        )
    return classes


def _files(folder: Path, classes: tuple[str, ...]) -> Files:
    found = _classes(folder)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(
            f"{folder} has {len(found)} classes and train has {len(classes)} (first difference: "
            f"{odd[0]}); every part must have the same class folders: add or remove it"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        members = _shown(folder / name)
        foreign = [path for path in members if path.suffix.lower() not in SUFFIXES]
        if foreign:
            raise DataError(
                f"{len(foreign)} entries of {folder / name} are no images by their names, the "
                f"first being {foreign[0].name}; a class folder must hold images only: remove them"
            )
        if not members:
            raise DataError(
                f"{folder / name} holds no image; every class must have at least one: "
                "add images or remove the class everywhere"
            )
        paths += members
        labels += [label] * len(members)
    return paths, np.array(labels, dtype=np.int64)
