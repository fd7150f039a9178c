"""The folder that a run leaves: where each thing lies, and how it is opened."""

import errno
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from spikedriven.errors import CheckpointError, ConfigError, DataError
from spikedriven.models.registry import find_variant
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.models.weights import load_model
from spikedriven.records import write_whole
from spikedriven.train.config import Recipe
from spikedriven.train.recipe import parse_recipe, text_of

if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no child inherits it, unlike flock's


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

    @property
    def has_finished(self) -> bool:
        """Whether there is what came out, damaged or not."""
        return self.metrics_file.is_file()

    def weights_file(self, which: str) -> Path:
        """Weights of the `last` epoch or of the `best` on the validation split."""
        return self.checkpoints / f"{which}.safetensors"

    @classmethod
    def check_new(cls, folder: Path) -> None:
        """Check that a run's folder can be made.

        Raises:
            ConfigError: It exists.
        """
        if folder.exists() and not cls(folder).recipe_file.is_file():
            raise ConfigError(
                f"{folder} exists and is no run; a run must have a folder of its own: choose "
                "another with --run"
            )
        if folder.exists():
            raise ConfigError(
                f"{folder} exists; a run never overwrites another: choose another folder with "
                f"--run, or continue it with spikedriven train --resume {folder}"
            )

    @classmethod
    def create(cls, folder: Path, recipe: Recipe) -> "Run":
        """Make the folder with the recipe in it.

        Raises:
            ConfigError: The folder exists, or cannot be made.
            CheckpointError: There is no room for the recipe.
        """
        cls.check_new(folder)
        # A kill leaves the whole folder or none, so what is there can always be continued.
        building = cls(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}"))
        try:
            building.checkpoints.mkdir(parents=True)
            write_whole(building.recipe_file, recipe.to_yaml().encode())
            building.folder.rename(folder)
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be made ({error.strerror}); the folder above it must be "
                "writable: choose another with --run"
            ) from error
        finally:
            shutil.rmtree(building.folder, ignore_errors=True)
        return cls(folder)

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

    @contextmanager
    def held(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keep every other process from training here; the lock ends with this process, at last.

        Args:
            say: Receives one line where the file system knows no locks.

        Raises:
            ConfigError: Another process trains here.
        """
        with (self.folder / ".lock").open("wb") as file:
            try:
                _lock(file)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise ConfigError(
                        f"{self.folder} is being trained by another process; one alone may write "
                        "into it: wait until that ends, or stop it"
                    ) from error
                say(f"{self.folder} cannot be locked ({error.strerror}): start no second process")
            yield

    def recipe(self, settings: Sequence[str] = ()) -> Recipe:
        """Return the run's recipe, with `settings` as in `load_recipe`."""
        return parse_recipe(text_of(self.recipe_file), settings, name=str(self.recipe_file))

    def metrics(self) -> dict[str, Any]:
        """Return what came out, or nothing where the run has not finished.

        Raises:
            DataError: The file is damaged.
        """
        if not self.has_finished:
            return {}
        try:
            loaded = json.loads(self.metrics_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.damaged_metrics(str(error)) from error
        except RecursionError as error:
            raise self.damaged_metrics("it is nested too deeply") from error
        lost = [key for key in ("test_accuracy", "data") if key not in _mapping(loaded)]
        if lost:
            raise self.damaged_metrics(f"it lacks {lost[0]}")
        return _mapping(loaded)

    def damaged_metrics(self, reason: str) -> DataError:
        """Return what to raise where metrics.json cannot be used."""
        return DataError(
            f"{self.metrics_file} is damaged ({reason}); it must be what training wrote: remove "
            f"it and write it anew with spikedriven train --resume {self.folder}"
        )

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
            ConfigError: `which` is neither, no epoch has ended yet, or nothing chose a best.
            CheckpointError: The weights are missing or damaged, or not of the recipe's model.
        """
        recipe = self.recipe()
        which = recipe.evaluate if which is None else which
        if which not in ("last", "best"):
            raise ConfigError(
                f"{which!r} names no weights of a run; it must be last or best: choose one"
            )
        file, last = self.weights_file(which), self.weights_file("last")
        if not last.exists() and not self.has_finished:
            raise ConfigError(
                f"{self.folder} has no weights yet, because no epoch has ended; one must have: "
                f"continue it with spikedriven train --resume {self.folder}"
            )
        if which == "best" and not file.exists():
            raise ConfigError(
                f"{self.folder} has no best weights, because no validation split has chosen any; "
                "weights must be last: choose these"
            )
        model = load_model(file)
        _check_model(model.config, recipe, file)
        return model


def _mapping(loaded: object) -> dict[str, Any]:
    return loaded if isinstance(loaded, dict) else {}


def _check_model(config: SDTConfig, recipe: Recipe, file: Path) -> None:
    given = recipe.model.overrides()
    wanted = asdict(find_variant(recipe.model.name).config)
    for name in ("num_classes", "in_channels", "num_steps"):  # the data's, unless the recipe says
        del wanted[name]
    for name, value in (wanted | given).items():
        found = getattr(config, name)
        if found != value:
            raise CheckpointError(
                f"{file} holds a model with {name} {found} and the recipe.yaml of its run says "
                f"{value}; they must agree: undo the change to either"
            )
