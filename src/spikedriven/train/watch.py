"""What stops a run: a loss or a weight that is no number, and whoever asks it to stop."""

import math
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import SIGTERMException

from spikedriven.errors import SpikeDrivenError

CURE = "lower optimizer.lr or set trainer.gradient_clip=1.0"


class DivergedError(SpikeDrivenError):
    """The loss, or a weight, is no longer a number."""


class Watch(lightning.Callback):
    """Stops at a loss or a weight that is no number, before any checkpoint holds it."""

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss of every step."""
        del pl_module, batch
        if not math.isfinite(outputs["loss"]):
            raise DivergedError(
                f"the loss is {float(outputs['loss'])} in epoch {trainer.current_epoch + 1}, step "
                f"{batch_idx + 1}; it must be a number, and the checkpoints of the epoch before "
                f"are whole: {CURE}"
            )

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Look at every weight: a neuron that meets NaN stays silent, and the loss a number."""
        for name, tensor in pl_module.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise DivergedError(
                    f"{name.removeprefix('model.')} holds a value that is no number after epoch "
                    f"{trainer.current_epoch + 1}; every weight must be one, and the checkpoints "
                    f"of the epoch before are whole: {CURE}"
                )

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Note Ctrl-C and SIGTERM, which Lightning turns into an exit."""
        del trainer, pl_module
        self.interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
