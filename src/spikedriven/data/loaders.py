"""The loader contract: items in, batches out, every one of them exactly once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from spikedriven.data.config import AugmentConfig, DataInfo
from spikedriven.data.events import read_frames
from spikedriven.data.transforms import (
    Augment,
    ImageFile,
    counted_damage,
    decode,
    image_of,
    normalise,
    open_image,
)
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
        images: Tensor | Sequence[ImageFile],
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
        info = self.info
        return decode(stored, info.in_channels, info.image_size, info.crop, info.interpolation)

    def _varied(self, index: int, augment: Augment, rng: np.random.Generator) -> Tensor:
        if augment.random_crop is None:
            return augment(self.pixels(index), rng)
        stored = self.images[index]
        if isinstance(stored, Tensor):
            return augment(augment.cropped(image_of(stored), rng), rng)
        return augment(augment.cropped(open_image(stored, self.info.in_channels), rng), rng)

    def __getitem__(self, address: Address) -> tuple[Tensor, int]:
        epoch, index = address if isinstance(address, tuple) else (None, address)
        if self.augment is None or epoch is None:
            pixels = self.pixels(index)
        else:
            rng = np.random.default_rng((VARIATION, self.seed, epoch, index))
            pixels = self._varied(index, self.augment, rng)
        return normalise(pixels, self.info), int(self.labels[index])


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the processes that share a training run this one is."""

    rank: int = 0
    ranks: int = 1


ALONE = Place()
"""The place of a process that shares its run with no other."""


class EpochSampler(Sampler[tuple[int, int]]):
    """Gives out (epoch, index) in an order that depends on (seed, epoch) alone.

    With several processes each gives out its part of every common batch of `ranks * batch_size`;
    of the last, partial one as many as the others or one less. Fewer samples than processes, which
    may be left at the end, are left out of that epoch.

    Args:
        length: Samples in the dataset.
        seed: Seed of the order.
        batch_size: Samples that a process takes at once.
        place: Which process this is.
    """

    def __init__(self, length: int, seed: int, batch_size: int = 1, place: Place = ALONE) -> None:
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.place = place
        self.epoch = 0
        self._begin = (0, 0)
        whole, rest = divmod(length, batch_size * place.ranks)
        self.whole = whole
        """Common batches that are full."""
        self.rest = rest if rest >= place.ranks else 0
        """Samples of the partial one behind them."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives out."""
        self.epoch = epoch

    def begin_at(self, epoch: int, batch: int) -> None:
        """Leave out, in this epoch alone, the batches before this one: they were given out."""
        self._begin = (epoch, batch)

    @property
    def first(self) -> int:
        """Batches of the chosen epoch that are left out."""
        return self._begin[1] if self.epoch == self._begin[0] else 0

    def weight(self, batch: int) -> float:
        """Return what the mean over this process's part of a batch counts in the mean of parts.

        1 where all parts are equal: then, and with this weight always, the mean over processes is
        the mean over the samples of the common batch.
        """
        if batch < self.whole:
            return 1.0
        return len(self._part(np.arange(self.rest))) * self.place.ranks / self.rest

    def _part(self, common: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array_split(common, self.place.ranks)[self.place.rank]

    def __len__(self) -> int:
        # Of a whole epoch: where it begins changes no epoch's number of steps.
        return self.whole * self.batch_size + len(self._part(np.arange(self.rest)))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng((ORDER, self.seed, self.epoch)).permutation(self.length)
        size = self.batch_size * self.place.ranks
        for batch in range(self.first, self.whole + (self.rest > 0)):
            common = order[batch * size : min((batch + 1) * size, self.whole * size + self.rest)]
            yield from ((self.epoch, int(index)) for index in self._part(common))


class PartSampler(Sampler[int]):
    """Gives each process its part of a dataset, in order: every sample to exactly one.

    All give out equally many, because a distributed network computes in step; those beyond a
    process's own repeat the last sample, and whoever counts must leave them out.

    Args:
        length: Samples in the dataset.
        place: Which process this is.
    """

    def __init__(self, length: int, place: Place = ALONE) -> None:
        self.length = length
        self.size = -(-length // place.ranks)
        self.start = min(place.rank * self.size, length)

    @property
    def own(self) -> int:
        """How many samples, from the first given out, are this process's."""
        return min(self.size, self.length - self.start)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return (min(self.start + n, self.length - 1) for n in range(self.size))


class Loader(DataLoader[tuple[Tensor, int]]):
    """PyTorch's loader, which reports damaged data in one sentence, also from a worker process."""

    dataset: ArrayDataset

    def check_worker_number_rationality(self) -> None:
        """Pass over PyTorch's warning where there are more workers than cores: so it was asked."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # theirs is private
        try:
            yield from super().__iter__()
        except DataError as error:
            # PyTorch makes the error of a worker anew, with the worker's traceback as its message
            sentence = str(error).rpartition(f"{DataError.__name__}: ")[2].strip()
            files = self.dataset.images
            met = DataError(sentence)
            raise met if isinstance(files, Tensor) else counted_damage(files, met) from error


class TrainingLoader(Loader):
    """Gives out an `EpochSampler`'s batches, and can continue inside an epoch."""

    sampler: EpochSampler
    _given = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # theirs is private
        self._given = self.sampler.first
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were given out."""
        return {"epoch": self.sampler.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there: in that epoch, only the batches that follow are given out."""
        self.sampler.begin_at(state["epoch"], state["batch"])


def make_loader(
    dataset: ArrayDataset,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    place: Place = ALONE,
) -> Loader:
    """Return a loader that gives out every sample once an epoch, the last batch partial.

    Args:
        dataset: What to load.
        batch_size: Samples per batch.
        shuffle: Draw in random order, varied, by an `EpochSampler`; else in order, unvaried.
        seed: Seed of the order.
        num_workers: Processes that prepare samples; the result does not depend on it.
        place: Which of several training processes this is; each gives out its part.
    """
    length = len(dataset)
    return (TrainingLoader if shuffle else Loader)(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(length, seed, batch_size, place)
        if shuffle
        else PartSampler(length, place),
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
    pixels = decode(path, info.in_channels, info.image_size, info.crop, info.interpolation)
    return normalise(pixels, info)
