"""The folder that a run leaves: where each thing lies, and how it is opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikedriven.errors import ConfigError, DataError
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.models.weights import load_model
from spikedriven.records import write_whole
from spikedriven.train.config import Recipe
from spikedriven.train.recipe import load_recipe


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        folder: Its path.
    """

    folder: Path

    @property
    def recipe_file(self) -> Path:
        """The recipe, complete."""
        return self.folder / "recipe.yaml"

    @property
    def metrics_file(self) -> Path:
        """What came out: accuracy, size, time."""
        return self.folder / "metrics.json"

    @property
    def records_file(self) -> Path:
        """The same as records with their passports."""
        return self.folder / "records.jsonl"

    @property
    def table_file(self) -> Path:
        """Loss, accuracy, rate and firing rate, step by step."""
        return self.folder / "metrics.csv"

    @property
    def log_file(self) -> Path:
        """One line for every epoch."""
        return self.folder / "train.log"

    @property
    def checkpoints(self) -> Path:
        """Folder of weights and training state."""
        return self.folder / "checkpoints"

    @property
    def state_file(self) -> Path:
        """Training state after the last whole epoch, or inside one where that is asked for."""
        return self.checkpoints / "last.ckpt"

    @property
    def state_before(self) -> Path:
        """The training state before the last."""
        return self.checkpoints / "before.ckpt"

    @property
    def has_state(self) -> bool:
        """Whether there is a training state, whole or not, to continue from."""
        return self.state_file.exists() or self.state_before.exists()

    def weights_file(self, which: str) -> Path:
        """Weights of the `last` epoch or of the `best` on the validation split."""
        return self.checkpoints / f"{which}.safetensors"

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> "Run":
        """Make the folder and write the recipe into it.

        Raises:
            ConfigError: The folder exists, or cannot be made.
        """
        if folder.exists():
            raise ConfigError(
                f"{folder} exists; a run never overwrites another: choose another folder with "
                f"--run, or continue it with spikedriven train --resume {folder}"
            )
        run = cls(folder)
        try:
            run.checkpoints.mkdir(parents=True)
            run.recipe_file.write_text(recipe.to_yaml(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be made ({error.strerror}); the folder above it must be "
                "writable: choose another with --run"
            ) from error
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open a folder that a run left.

        Raises:
            ConfigError: It is none.
        """
        run = cls(folder)
        if not run.recipe_file.is_file():
            raise ConfigError(
                f"{folder} is no run: it must hold recipe.yaml as spikedriven train leaves it: "
                "check the path"
            )
        return run

    def recipe(self) -> Recipe:
        """Return the run's recipe."""
        return load_recipe(self.recipe_file)

    def metrics(self) -> dict[str, Any]:
        """Return what came out, or nothing where the run has not finished.

        Raises:
            DataError: The file is damaged.
        """
        if not self.metrics_file.is_file():
            return {}
        try:
            loaded: dict[str, Any] = json.loads(self.metrics_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(
                f"{self.metrics_file} is damaged ({error}); it must be what training wrote: remove "
                f"it and write it anew with spikedriven train --resume {self.folder}"
            ) from error
        return loaded

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write what came out; from then on the run has finished.

        Raises:
            CheckpointError: The file cannot be written.
        """
        write_whole(self.metrics_file, (json.dumps(metrics, indent=2) + "\n").encode())

    def model(self, which: str | None = None) -> SpikeDrivenTransformer:
        """Load weights, in evaluation mode.

        Args:
            which: `last` or `best`; by default what the recipe says.

        Raises:
            ConfigError: `which` is neither, or nothing chose a best.
            CheckpointError: The weights are missing or damaged.
        """
        recipe = self.recipe()
        which = which or recipe.evaluate
        if which not in ("last", "best"):
            raise ConfigError(f"weights is {which!r}; it must be last or best: choose one")
        if which == "best" and recipe.data.validation_fraction == 0:
            raise ConfigError(
                f"{self.folder} has no best weights, because no validation split chose them; "
                "weights must be last: leave it out"
            )
        return load_model(self.weights_file(which))
