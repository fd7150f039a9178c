"""What stops a run: a loss or a weight that is no number, and whoever asks it to stop."""

import math
from collections.abc import Callable
from subprocess import Popen
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from spikedriven.errors import SpikeDrivenError
from spikedriven.train.processes import begin_sum, sum_over_processes, take_over
from spikedriven.train.shard import own_part

CURE = "lower optimizer.lr or set trainer.gradient_clip=1.0"


class DivergedError(SpikeDrivenError):
    """The loss, or a weight, is no longer a number."""


def check_weights(trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
    """Look at every weight: a neuron that meets NaN stays silent, and the loss a number.

    Raises:
        DivergedError: One is no number.
    """
    state = module.state_dict()
    # A process that holds a part of a weight, or statistics of its own, speaks for all.
    foreign = torch.stack([(~own_part(tensor).isfinite()).any() for tensor in state.values()])
    for name, found in zip(state, sum_over_processes(foreign.int()).tolist(), strict=True):
        if found:
            raise DivergedError(
                f"{name.removeprefix('model.')} holds a value that is no number in epoch "
                f"{trainer.current_epoch + 1}; every weight must be one, and no checkpoint holds "
                f"this: {CURE}"
            )


class Watch(lightning.Callback):
    """Stops at a loss that is no number, before any checkpoint holds what it led to."""

    def __init__(self) -> None:
        self.interrupted = False
        self.started: list[Popen[bytes]] = []
        """After an error: the processes that this one started."""
        self._loss: Callable[[], Tensor] | None = None

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Tell the other processes this one's loss; it is on its way while gradients are made."""
        del trainer, pl_module
        self._loss = begin_sum(loss.detach())

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss of every step; of several processes all stop where one must."""
        del pl_module, outputs, batch
        assert self._loss is not None
        loss = float(self._loss())  # the one place where a step waits for its device
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} in epoch {trainer.current_epoch + 1}, step "
                f"{batch_idx + 1}; it must be a number, and no checkpoint holds what came of it: "
                f"{CURE}"
            )

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Note Ctrl-C and SIGTERM, which Lightning turns into an exit; keep it from a worse one."""
        del pl_module
        self.started = take_over(trainer)
        self.interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
