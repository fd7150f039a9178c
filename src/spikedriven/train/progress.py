"""What a person sees while a model learns."""

import time
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

# Short names, so that all stand on one line of an ordinary terminal.
SHOWN = {
    "loss": "loss",
    "accuracy": "acc",
    "validation_accuracy": "val",
    "firing_rate": "firing",
}


class Bar(RichProgressBar):
    """Lightning's bar: step, time left, loss, accuracy, firing rate; epochs counted from one."""

    def configure_columns(self, trainer: lightning.Trainer) -> list[ProgressColumn]:
        """Return a bar narrow enough to leave room for the numbers."""
        del trainer
        return [
            TextColumn("{task.description}"),
            BarColumn(bar_width=6),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
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


class EpochLine(lightning.Callback):
    """One line an epoch, for logs and pipes.

    Args:
        say: Receives each line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.started = 0.0
        self.first_epoch = 0

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start the clock."""
        del pl_module
        self.started, self.first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Say how the epoch went and how long the rest will take."""
        del pl_module
        done = trainer.current_epoch + 1
        total = trainer.max_epochs or done
        spent = time.monotonic() - self.started
        left = spent / (done - self.first_epoch) * (total - done)
        names = ("loss", "accuracy", "validation_accuracy", "firing_rate")
        shown = [
            f"{name.replace('_', ' ')} {float(trainer.callback_metrics[name]):.4f}"
            for name in names
            if name in trainer.callback_metrics
        ]
        self.say(f"epoch {done}/{total}  {'  '.join(shown)}  {left:.0f} s left")
