"""The datasets by name: scikit-learn's digits inside, the others from a folder of the user."""

import difflib
import gzip
import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikedriven.data.config import DataConfig, DataInfo
from spikedriven.data.events import open_cifar10dvs, open_dvs128_gesture, open_nmnist
from spikedriven.data.folder import locate, open_folder
from spikedriven.data.hugging_face import open_hugging_face
from spikedriven.data.loaders import ArrayDataset
from spikedriven.data.resident import check_resident
from spikedriven.data.shards import open_shards
from spikedriven.data.transforms import ImageFile, Part, resized
from spikedriven.errors import ConfigError, DataError

# The five-fold stratified split of the digits, as bytes: 0 train, 1 test.
DIGITS_SPLIT_SHA256 = "b789b1d9d1072c829617daf6df3d1976aea5fed4b77ca64250299e25ae9fe72c"
DIGITS_SIZE = 16


@dataclass(frozen=True, slots=True)
class Splits:
    """A dataset, divided. The test split never chooses anything."""

    info: DataInfo
    train: ArrayDataset
    validation: ArrayDataset
    test: ArrayDataset


Opened = tuple[DataInfo, Part, Part | None, Part]
"""Description, train, validation where the dataset brings its own, test."""


def list_datasets() -> list[str]:
    """Return the names that `open_data` knows."""
    return list(_SOURCES)


def open_data(config: DataConfig, root: Path | None = None, *, seed: int = 0) -> Splits:
    """Open a dataset and divide it.

    Args:
        config: Which one, and how.
        root: Folder that holds it; None for the embedded digits.
        seed: Seed of the variation of training images. The division does not depend on it.

    Raises:
        ConfigError: There is no such dataset, or a setting or a folder is given that it has no use
            for.
        DataError: The folder is missing, incomplete or contradicts itself, or holds fewer than two
            classes, no training or no test image.
    """
    if config.name not in _SOURCES:
        close = difflib.get_close_matches(config.name, _SOURCES, n=1)
        cure = f"did you mean {close[0]}?" if close else "choose one of them"
        raise ConfigError(
            f"there is no dataset {config.name!r}; the datasets are {', '.join(_SOURCES)}: {cure}"
        )
    info, train, validation, test = _SOURCES[config.name](config, root)
    if len(info.classes) < 2:
        raise DataError(
            f"{info.name} has {len(info.classes)} class; there must be at least two to choose "
            "between: add another class"
        )
    for part, (images, _) in (("training", train), ("test", test)):
        if len(images) == 0:
            raise DataError(
                f"{info.name} has no {part} image; there must be at least one: add it or copy the "
                f"{part} files again"
            )
    if config.num_frames is not None and info.num_steps is None:
        raise ConfigError(
            f"data.num_frames is {config.num_frames} and {config.name} holds images; only "
            "recordings of events are divided into frames: leave it out and set model.num_steps"
        )
    if config.augment.crop_scale is not None and info.num_steps is not None:
        raise ConfigError(
            f"crop_scale is set and {config.name} holds recordings of events; only images are "
            "cropped at random: remove data.augment.crop_scale"
        )
    if config.augment.rand_augment is not None and info.in_channels != 3:
        raise ConfigError(
            f"rand_augment is set and {config.name} has no colours; RandAugment needs colour "
            "images: remove data.augment.rand_augment"
        )
    is_stored = isinstance(train[0], Tensor)
    if is_stored and (config.crop, config.interpolation) != (1.0, "bilinear"):
        raise ConfigError(
            f"data.crop or data.interpolation is set and {config.name} holds no image "
            "files; they must stand with data.name=image_folder, webdataset or hugging_face: leave "
            "them out"
        )
    if validation is None:
        train, validation = _held_out(*train, config.validation_fraction)
    splits = Splits(
        info,
        ArrayDataset(*train, info, config.augment, seed),
        ArrayDataset(*validation, info),
        ArrayDataset(*test, info),
    )
    if config.resident:
        check_resident(splits.train)
    return splits


def _held_out(
    images: Tensor | Sequence[ImageFile], labels: NDArray[np.int64], fraction: float
) -> tuple[Part, Part]:
    """Divide class by class; which images are held out never changes with the seed."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.random.default_rng(int(label)).permutation(members)
        count = round(fraction * len(members))
        if fraction > 0 and len(members) > 1:  # some on either side, however few there are
            count = min(max(count, 1), len(members) - 1)
        chosen[order[:count]] = True

    def part(mask: NDArray[np.bool_]) -> Part:
        kept = np.flatnonzero(mask)
        if isinstance(images, Tensor):
            return images[torch.from_numpy(kept)], labels[kept]
        return [images[i] for i in kept.tolist()], labels[kept]

    return part(~chosen), part(chosen)


def _digits(config: DataConfig, root: Path | None) -> Opened:
    if root is not None:
        raise ConfigError(
            f"the folder {root} is given and digits are embedded in the package; only other data "
            "are read from a folder: leave out --data or set data.name"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    _, test = next(folds.split(labels, labels))
    is_test = np.zeros(len(labels), dtype=np.uint8)
    is_test[test] = 1
    found = hashlib.sha256(is_test.tobytes()).hexdigest()
    if found != DIGITS_SPLIT_SHA256:
        raise DataError(
            f"the split of the digits hashes to {found[:12]}; it must be the fixed one, "
            f"{DIGITS_SPLIT_SHA256[:12]}: install another version of scikit-learn"
        )
    # 16 grey levels are spread over bytes; 17 levels times 15 is the nearest whole factor.
    pixels = torch.from_numpy((bunch.images * 15).astype(np.uint8))[:, None]
    size = config.image_size or DIGITS_SIZE
    pixels = resized(pixels, size, size)
    info = DataInfo(
        name="digits",
        classes=tuple("0123456789"),
        in_channels=1,
        image_size=pixels.shape[-1],
        mean=(0.287,),
        std=(0.300,),
    )
    train = np.flatnonzero(is_test == 0)
    return (
        info,
        (pixels[torch.from_numpy(train)], labels[train]),
        None,
        (pixels[torch.from_numpy(test)], labels[test]),
    )


def _read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Return the bytes of an idx file, packed by gzip where its name ends in .gz.

    Raises:
        ValueError: It holds other than bytes in `ndim` dimensions, or more or fewer than it says.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(f"{path.name} does not begin as an idx file of {ndim} dimensions")
    shape = np.frombuffer(content[4:header], dtype=">u4").tolist()
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path.name} holds {len(content) - header} of {math.prod(shape)} bytes")
    return np.frombuffer(bytearray(content[header:]), dtype=np.uint8).reshape(shape)


def _mnist_like(
    folder: str, classes: tuple[str, ...], mean: float, std: float
) -> Callable[[DataConfig, Path | None], Opened]:
    def opened(config: DataConfig, root: Path | None) -> Opened:
        first = "train-images-idx3-ubyte"
        layouts = (f"{folder}/raw/{first}", f"raw/{first}", first)
        found = locate(
            config.name, root, tuple(f"{x}{end}" for end in ("", ".gz") for x in layouts)
        )

        def part(prefix: str) -> Part:
            try:
                images = _read_idx(found.parent / f"{prefix}-images-idx3-ubyte{found.suffix}", 3)
                labels = _read_idx(found.parent / f"{prefix}-labels-idx1-ubyte{found.suffix}", 1)
                if images.shape[1:] != (28, 28):
                    raise ValueError(f"images are {' x '.join(map(str, images.shape[1:]))}")
            except (OSError, EOFError, ValueError, zlib.error) as error:
                raise DataError(
                    f"the {prefix} files of {config.name} in {found.parent} cannot be read "
                    f"({error}); they must be the original idx files: copy them again"
                ) from error
            size = config.image_size or 28
            pixels = torch.from_numpy(images)[:, None]
            return resized(pixels, size, size), labels.astype(np.int64)

        train, test = part("train"), part("t10k")
        info = DataInfo(
            name=config.name,
            classes=classes,
            in_channels=1,
            image_size=config.image_size or 28,
            mean=(mean,),
            std=(std,),
        )
        return info, train, None, test

    return opened


def _cifar(
    name: str, folder: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[DataConfig, Path | None], Opened]:
    def opened(config: DataConfig, root: Path | None) -> Opened:
        from torchvision import datasets

        found = locate(config.name, root, (folder, "batches.meta", "meta"))
        base = found if found.is_dir() else found.parent
        # torchvision would look beside the folder that is given, for one of the published name.
        kind = type(name, (getattr(datasets, name),), {"base_folder": ""})
        try:
            train, test = (kind(str(base), train=train) for train in (True, False))
        except RuntimeError as error:
            raise DataError(
                f"{config.name} in {base} is incomplete or altered ({error}); its files "
                "must have their published checksums: unpack the archive again"
            ) from error

        def part(loaded: datasets.CIFAR10) -> Part:
            pixels = torch.from_numpy(loaded.data).movedim(-1, 1).contiguous()
            size = config.image_size or 32
            return resized(pixels, size, size), np.array(loaded.targets, dtype=np.int64)

        info = DataInfo(
            name=config.name,
            classes=tuple(train.classes),
            in_channels=3,
            image_size=config.image_size or 32,
            mean=mean,
            std=std,
        )
        return info, part(train), None, part(test)

    return opened


_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Means and deviations of the training images: MNIST's and CIFAR's are the customary published
# ones (CIFAR's also the released recipes'), Fashion-MNIST's and the digits' were computed.
_SOURCES: dict[str, Callable[[DataConfig, Path | None], Opened]] = {
    "digits": _digits,
    "mnist": _mnist_like("MNIST", tuple("0123456789"), 0.1307, 0.3081),
    "fashion_mnist": _mnist_like("FashionMNIST", _FASHION, 0.2860, 0.3530),
    "cifar10": _cifar(
        "CIFAR10", "cifar-10-batches-py", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": _cifar(
        "CIFAR100", "cifar-100-python", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    ),
    "cifar10dvs": open_cifar10dvs,
    "dvs128_gesture": open_dvs128_gesture,
    "nmnist": open_nmnist,
    "image_folder": open_folder,
    "webdataset": open_shards,
    "hugging_face": open_hugging_face,
}
