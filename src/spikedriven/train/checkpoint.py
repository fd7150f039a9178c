"""Checkpoints that are always whole: weights as safetensors, training state as one file.

A file is replaced only by a complete successor. Reading one never runs code from it.
"""

import io
import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from spikedriven.errors import CheckpointError
from spikedriven.models.weights import save_model
from spikedriven.records import write_whole
from spikedriven.train.module import Training
from spikedriven.train.run import Run

# What Lightning and this package need to continue a run.
_PARTS = {"state_dict", "optimizer_states", "loops", "callbacks", "epoch", "global_step", "recipe"}


class WholeFileIO(TorchCheckpointIO):
    """Writes training state in one step and reads only tensors and plain values."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the state; a failure leaves the older file whole."""
        del storage_options
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read the state.

        Raises:
            CheckpointError: The file is damaged, or holds more than data.
        """
        del weights_only
        try:
            with warnings.catch_warnings():
                # What torch thinks of a foreign pickle is said below, in one sentence.
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                state: dict[str, Any] = torch.load(path, map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} is damaged or holds more than data, and was not run; it must be the "
                "training state that this package wrote: start the run anew"
            ) from error
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} cannot be read ({reason}); it must be a whole training state: "
                "start the run anew"
            ) from error
        missing = _PARTS - (state.keys() if isinstance(state, dict) else set())
        if missing:
            raise CheckpointError(
                f"{path} is no training state, it lacks {min(missing)}; it must be what this "
                "package wrote: start the run anew"
            )
        return state


class KeepWeights(lightning.Callback):
    """After every epoch keeps the last weights, the best on the validation split, and the state.

    Args:
        run: Where to keep them.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.best = -1.0
        self.seconds_before = 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training that the present weights took, over all sessions."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write all; the state comes last, so it never points beyond the weights."""
        assert isinstance(pl_module, Training)
        accuracy = trainer.callback_metrics.get("validation_accuracy")
        if accuracy is not None and float(accuracy) > self.best:
            self.best = float(accuracy)
            save_model(pl_module.model, self.run.weights_file("best"))
        save_model(pl_module.model, self.run.weights_file("last"))
        trainer.save_checkpoint(self.run.state_file)

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy and the time so far, for the training state."""
        return {"best": self.best, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back from the training state."""
        self.best, self.seconds_before = state_dict["best"], state_dict["seconds"]
