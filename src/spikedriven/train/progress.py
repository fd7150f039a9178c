"""What a person sees while a model learns."""

import math
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text
from torch import Tensor

from spikedriven.train.module import Training

# Short names, so that all stand on one line of an ordinary terminal.
SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "validation_accuracy": "val",
    "firing_rate": "firing",
}


class Clock:
    """How long a run still takes, at the pace so far; its work is the time steps that it shows."""

    def __init__(self) -> None:
        self.began = 0.0
        self.before = 0.0

    def start(self, trainer: lightning.Trainer) -> None:
        """Start the clock, wherever a run begins or continues."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        # Continued after a whole epoch: it is counted, and its batches are not yet forgotten.
        part = batches % int(trainer.num_training_batches) / trainer.num_training_batches
        self.began, self.before = monotonic(), self._work(trainer, trainer.current_epoch + part)

    def left(self, trainer: lightning.Trainer) -> float:
        """Return the seconds left; infinity before there is a pace."""
        done = self._work(trainer, epochs_done(trainer))
        if done <= self.before:
            return math.inf
        left = self._work(trainer, float(trainer.max_epochs or 0)) - done
        return (monotonic() - self.began) / (done - self.before) * left

    @staticmethod
    def _work(trainer: lightning.Trainer, epochs: float) -> float:
        module = trainer.lightning_module
        assert isinstance(module, Training)
        return module.recipe.schedule.work(epochs, module.model.config.num_steps)


def epochs_done(trainer: lightning.Trainer) -> float:
    """Return the epochs behind a trainer, with the part of the present one."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return trainer.current_epoch + batches / trainer.num_training_batches


class Left(ProgressColumn):
    """How long the whole run still takes, whichever bar it stands in.

    Args:
        seconds: Tells it, or infinity where it is not known yet.
    """

    max_refresh = 0.5

    def __init__(self, seconds: Callable[[], float]) -> None:
        super().__init__()
        self.seconds = seconds

    def render(self, task: Task) -> Text:
        """Return hours, minutes and seconds."""
        del task
        seconds = self.seconds()
        known = math.isfinite(seconds)
        return Text(str(timedelta(seconds=round(seconds))) if known else "-:--:--")


class Bar(RichProgressBar):
    """Lightning's bar: epoch, step, time left of all epochs, loss, accuracy, firing rate."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock of the whole run."""
        super().on_train_start(trainer, pl_module)
        self.clock.start(trainer)

    def configure_columns(self, trainer: lightning.Trainer) -> list[ProgressColumn]:
        """Return a bar narrow enough to leave room for the numbers."""
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=6),
            MofNCompleteColumn(),
            Left(lambda: self.clock.left(trainer)),
        ]

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, Any]:
        """Return what stands at the end of the bar."""
        found = super().get_metrics(trainer, pl_module)
        return {shown: found[name] for name, shown in SHOWN.items() if name in found}

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning counts from zero; everything else here that a person reads counts from one.
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"


# Seconds after which a first epoch that still runs says how long the whole run will take.
PATIENCE = 30.0


class EpochLine(lightning.Callback):
    """One line an epoch, for logs and pipes; before the first one, if that is long, a sign of life.

    Loss and accuracy are means over the images that the epoch has shown since the session began.

    Args:
        say: Receives each line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.clock = Clock()
        self.patient = True
        self.images = 0
        self.sums: dict[str, Tensor | float] = {}

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock."""
        del pl_module
        self.clock.start(trainer)

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin the means."""
        del trainer, pl_module
        self.images, self.sums = 0, dict.fromkeys(("loss", "accuracy"), 0.0)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add a batch to the means, without waiting for the device."""
        del outputs
        assert isinstance(pl_module, Training)
        images = len(batch[1])
        self.images += images
        for name in self.sums:
            self.sums[name] += images * pl_module.row[name]
        if self.patient and monotonic() - self.clock.began >= PATIENCE:
            left = self.clock.left(trainer)
            if math.isfinite(left):
                self.patient = False
                place = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
                step = f"step {batch_idx + 1}/{trainer.num_training_batches}"
                self.say(f"{place}  {step}  {left:.0f} s left")

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Say how the epoch went and how long the rest will take."""
        del pl_module
        self.patient = False
        done = trainer.current_epoch + 1
        total = trainer.max_epochs or done
        left = self.clock.left(trainer)
        # A continued run may stand at an epoch's end, with no batch left to show.
        values = {name: total / self.images for name, total in self.sums.items() if self.images}
        values = {**trainer.callback_metrics, **values}
        names = ("loss", "accuracy", "validation_accuracy", "firing_rate")
        shown = [
            f"{name.replace('_', ' ')} {float(values[name]):.4f}"
            for name in names
            if name in values
        ]
        self.say(f"epoch {done}/{total}  {'  '.join(shown)}  {left:.0f} s left")
