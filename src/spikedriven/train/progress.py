"""What a person sees while a model learns."""

import time
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import RichProgressBar


class Bar(RichProgressBar):
    """Lightning's bar (step, time left, loss, accuracy, firing rate) without its version number."""

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, Any]:
        """Return what stands at the end of the bar."""
        shown = super().get_metrics(trainer, pl_module)
        return {key: value for key, value in shown.items() if key != "v_num"}


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
