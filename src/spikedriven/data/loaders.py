"""The loader contract: items in, batches out, every one of them exactly once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from spikedriven.data.config import AugmentConfig, DataInfo
from spikedriven.data.events import read_frames
from spikedriven.data.transforms import Augment, decode, normalise
from spikedriven.errors import DataError

Address = int | tuple[int, int]
"""Index of a sample, or (epoch, index) where it is to be varied."""

# First words of the seeds: without them sample 0 would draw from the stream of the order.
ORDER, VARIATION = 1, 2


class ArrayDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels, held as bytes or read from files when asked for.

    Args:
        images: uint8 [N, C, H, W], frames [N, T, C, H, W], or N image files.
        labels: Whole numbers in [0, K), one for each image.
        info: What they are; fixes K, size and normalisation.
        augment: Variation applied to items that are asked for by (epoch, index).
        seed: Seed of that variation.

    Raises:
        DataError: Numbers of images and labels differ, or a label is out of range.
    """

    def __init__(
        self,
        images: Tensor | list[Path],
        labels: NDArray[np.int64],
        info: DataInfo,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        if len(images) != len(labels):
            raise DataError(
                f"{info.name} has {len(images)} images and {len(labels)} labels; there must be "
                "one label for each image: repair the dataset"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(info.classes):
            wrong = int(labels.max() if labels.max() >= len(info.classes) else labels.min())
            raise DataError(
                f"{info.name} has the label {wrong}; labels must lie in "
                f"[0, {len(info.classes) - 1}]: repair the labels"
            )
        self.images = images
        self.labels = labels
        self.info = info
        self.augment = None if augment is None else Augment(augment, info)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: int) -> Tensor:
        """Return the stored image, uint8 [C, H, W], or its frames [T, C, H, W]."""
        stored = self.images[index]
        if isinstance(stored, Tensor):
            return stored
        return decode(stored, self.info.in_channels, self.info.image_size)

    def __getitem__(self, address: Address) -> tuple[Tensor, int]:
        epoch, index = address if isinstance(address, tuple) else (None, address)
        pixels = self.pixels(index)
        if self.augment is not None and epoch is not None:
            pixels = self.augment(
                pixels, np.random.default_rng((VARIATION, self.seed, epoch, index))
            )
        return normalise(pixels, self.info), int(self.labels[index])


class EpochSampler(Sampler[Address]):
    """Gives out (epoch, index) in an order that depends on (seed, epoch) alone.

    Args:
        length: Samples in the dataset.
        seed: Seed of the order.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives out."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Address]:
        order = np.random.default_rng((ORDER, self.seed, self.epoch)).permutation(self.length)
        return ((self.epoch, int(index)) for index in order)


class Loader(DataLoader[tuple[Tensor, int]]):
    """PyTorch's loader, whose worker processes report damaged data in one sentence."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # theirs is private
        try:
            yield from super().__iter__()
        except DataError as error:
            # PyTorch makes the error of a worker anew, with the worker's traceback as its message
            sentence = str(error).rpartition(f"{DataError.__name__}: ")[2].strip()
            raise DataError(sentence) from error


def make_loader(
    dataset: ArrayDataset,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
) -> Loader:
    """Return a loader that gives out every sample once an epoch, the last batch partial.

    Args:
        dataset: What to load.
        batch_size: Samples per batch.
        shuffle: Draw in random order, varied, by an `EpochSampler`; else in order, unvaried.
        seed: Seed of the order.
        num_workers: Processes that prepare samples; the result does not depend on it.
    """
    sampler = EpochSampler(len(dataset), seed) if shuffle else None
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else PyTorch draws a number from the global generator
    )


def read_sample(path: Path, info: DataInfo) -> Tensor:
    """Read a file as the dataset's test items are: an image, or a recording as normalised frames.

    Args:
        path: Image in any format that Pillow reads, or a recording (`events.read_events`).
        info: The dataset that the model was trained on.

    Returns:
        float32 [C, H, W], or [T, C, H, W] where `info.num_steps` is set.

    Raises:
        DataError: The file is missing or damaged.
    """
    if info.num_steps is not None:
        return normalise(read_frames(path, info.num_steps, info.image_size), info)
    return normalise(decode(path, info.in_channels, info.image_size), info)
