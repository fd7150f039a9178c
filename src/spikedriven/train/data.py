"""The data of a training run: its loaders, and what tells these data from others.

A run continues on the images that it began with, or not at all.
"""

import hashlib
import os
from typing import Any

import lightning
from torch import Tensor

from spikedriven.data import ArrayDataset, Loader, ResidentLoader, Splits, make_loader
from spikedriven.errors import DataError
from spikedriven.train.config import Recipe
from spikedriven.train.evaluate import device_for
from spikedriven.train.processes import this_place


class Data(lightning.LightningDataModule):
    """The loaders of a recipe, made once the processes know one another.

    Args:
        recipe: Batch size, workers, seed, and where the training images lie.
        splits: The data.
    """

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        super().__init__()
        self.recipe = recipe
        self.splits = splits
        self.marks = _marks(splits)

    def state_dict(self) -> dict[str, Any]:
        """Return what tells these data from others."""
        return self.marks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a run continues on the data that it began with.

        Raises:
            DataError: They differ.
        """
        for what, begun in state_dict.items():
            found = self.marks.get(what)
            if found != begun:
                counts = f" ({found} and {begun})" if isinstance(begun, int) else ""
                raise DataError(
                    f"{self.splits.info.name} and the data that the run began with differ in their "
                    f"{what}{counts}; a run must continue on the same images: pass the --data that "
                    "it began with, or start another run"
                )

    def train_dataloader(self) -> Loader | ResidentLoader:
        """Return this process's part of the training images, in random order."""
        data = self.recipe.data
        if data.resident:
            return ResidentLoader(
                self.splits.train,
                batch_size=data.batch_size,
                device=device_for(self.recipe),
                seed=self.recipe.seed,
                place=this_place(),
            )
        return self._loader(self.splits.train, shuffle=True)

    def val_dataloader(self) -> Loader | list[Loader]:
        """Return its part of the validation images, or nothing where none were held out."""
        return self._loader(self.splits.validation) if len(self.splits.validation) else []

    def _loader(self, dataset: ArrayDataset, *, shuffle: bool = False) -> Loader:
        data = self.recipe.data
        return make_loader(
            dataset,
            batch_size=data.batch_size,
            shuffle=shuffle,
            seed=self.recipe.seed,
            num_workers=data.num_workers,
            place=this_place(),
        )


def _marks(splits: Splits) -> dict[str, Any]:
    """Return what tells training data from others, by a person's words for it.

    No image is read, so that millions of them take a second.
    """
    marks: dict[str, Any] = {"classes": list(splits.info.classes)}
    for part, dataset in (("training", splits.train), ("validation", splits.validation)):
        marks[f"number of {part} images"] = len(dataset)
        marks[f"{part} labels"] = hashlib.sha256(dataset.labels.tobytes()).hexdigest()
        if not isinstance(dataset.images, Tensor):
            names = os.fsencode("/".join(file.name for file in dataset.images))
            marks[f"names of {part} images"] = hashlib.sha256(names).hexdigest()
    return marks
