"""The folder that a run leaves: where each thing lies, and how it is opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikedriven.errors import ConfigError
from spikedriven.train.recipe import Recipe, load_recipe


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
    def checkpoints(self) -> Path:
        """Folder of weights and training state."""
        return self.folder / "checkpoints"

    @property
    def state_file(self) -> Path:
        """Training state after the last whole epoch."""
        return self.checkpoints / "last.ckpt"

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
        """Return what came out, or nothing where the run has not finished."""
        if not self.metrics_file.is_file():
            return {}
        loaded: dict[str, Any] = json.loads(self.metrics_file.read_text(encoding="utf-8"))
        return loaded
