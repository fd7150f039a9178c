"""Checkpoints that are always whole: weights as safetensors, training state as one file.

A file is replaced only by a complete successor, and the training state before the last one stays
beside it. Reading one never runs code from it.
"""

import hashlib
import io
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from spikedriven.errors import CheckpointError
from spikedriven.models.weights import save_model
from spikedriven.records import write_whole
from spikedriven.train.data import Data
from spikedriven.train.log import Row, Table
from spikedriven.train.module import Training
from spikedriven.train.run import Run
from spikedriven.train.shard import whole_model
from spikedriven.train.watch import check_weights

# What Lightning and this package need to continue a run.
_PARTS: dict[str, type] = {
    "state_dict": dict, "optimizer_states": list, "loops": dict, "callbacks": dict, "epoch": int,
    "global_step": int, "recipe": str, "row": dict,
}  # fmt: skip

# A state file begins with these words and the SHA-256 of all that follows its first line.
_MARK = b"spikedriven training state 1, sha256 "


class WholeFileIO(TorchCheckpointIO):
    """Writes training state in one step and reads only tensors and plain values.

    The state that a file held before stays as `Run.state_before`, until the next one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the state; a failure leaves the older files whole."""
        del storage_options
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        mark = _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"
        file, successor = Path(path), Path(path).with_name("next.ckpt")
        write_whole(successor, mark + content)
        if file.exists():
            file.replace(file.with_name("before.ckpt"))
        successor.replace(file)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read the state.

        Raises:
            CheckpointError: The file is damaged, or holds more than data.
        """
        del weights_only
        content = _checked_content(Path(path))
        try:
            with warnings.catch_warnings():
                # What torch thinks of a foreign pickle is said below, in one sentence.
                warnings.filterwarnings("ignore", message="Detected pickle protocol")
                state: dict[str, Any] = torch.load(
                    io.BytesIO(content), map_location or "cpu", weights_only=True
                )
        except MemoryError:  # perhaps this machine's fault
            raise
        except Exception as error:  # A pickle that was made up fails in any way it likes.
            raise CheckpointError(
                f"{path} holds more than data, or none, and was not run; it must be the training "
                "state that this package wrote: start the run anew"
            ) from error
        missing = _PARTS.keys() - (state.keys() if isinstance(state, dict) else set())
        if missing:
            raise CheckpointError(
                f"{path} is no training state, it lacks {min(missing)}; it must be what this "
                "package wrote: start the run anew"
            )
        if foreign := _foreign(state):
            raise foreign_state(path, foreign)
        return state


def foreign_state(file: Path | str, part: str) -> CheckpointError:
    """Return what to raise where a part of a training state is not what this package writes."""
    return CheckpointError(
        f"{file} is no training state of this package, its {part} cannot be used; each part must "
        "be as training wrote it: start the run anew"
    )


def _foreign(state: dict[str, Any]) -> str | None:
    """Return the first part that is of another kind than `KeepWeights` and Lightning write."""
    for part, kind in _PARTS.items():
        if not isinstance(state[part], kind):
            return part
    noted = state["callbacks"].get(KeepWeights.__qualname__)
    marks = Data.__qualname__  # where Lightning keeps them
    good = {
        "state_dict": all(
            isinstance(tensor, torch.Tensor) for tensor in state["state_dict"].values()
        ),
        "optimizer_states": [type(one) for one in state["optimizer_states"]] == [dict],
        "row": _is_row(state["row"]),
        marks: isinstance(state.get(marks, {}), dict),  # earlier versions kept none
        "callbacks": isinstance(noted, dict)
        and all(isinstance(noted.get(name), int | float) for name in ("best", "seconds"))
        and isinstance(noted.get("rows"), int)
        and (noted.get("row") is None or _is_row(noted["row"])),
    }
    return next((part for part, holds in good.items() if not holds), None)


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())


def _checked_content(path: Path) -> bytes:
    try:
        first, _, content = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); it must be a whole training state: "
            "start the run anew"
        ) from error
    if not first.startswith(_MARK):
        raise CheckpointError(
            f"{path} is no training state; it must begin as this package writes it: "
            "start the run anew"
        )
    if hashlib.sha256(content).hexdigest().encode() != first.removeprefix(_MARK):
        raise CheckpointError(
            f"{path} is cut or altered, its checksum does not fit; it must be a whole training "
            "state: start the run anew"
        )
    return content


def table_of(run: Run, state: dict[str, Any] | None, say: Callable[[str], None]) -> Table:
    """Open a run's table at the place that a state notes; without a state, anew.

    Args:
        run: The run.
        state: What training continues from.
        say: Receives one line where rows from before the state are lost.
    """
    if state is None:
        return Table(run.table_file)
    noted = state["callbacks"][KeepWeights.__qualname__]
    table = Table(run.table_file, noted["rows"])
    if len(table.rows) < noted["rows"]:
        say(
            f"{run.table_file} holds {len(table.rows)} of the {noted['rows']} rows that were "
            "logged before the training state; the others are lost, and the weights are not"
        )
    if noted["row"] is not None:
        table.rows.append(noted["row"])
    return table


def newest_state(
    run: Run, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | tuple[None, None]:
    """Return the newest whole training state and its file, or nothing where a run has none.

    Whole is what has its checksum and all parts. Where Lightning cannot take such a state, the run
    is refused: the one before was written by the same versions, and would be no better.

    Args:
        run: The run.
        say: Receives one line where the last state is lost or damaged and the one before is taken,
            or where there was training and neither is left.

    Raises:
        CheckpointError: Neither state is whole.
    """
    last, before = run.state_file, run.state_before
    if not run.has_state:
        if run.table_file.exists():
            say(f"{run.folder} holds no training state; it begins anew")
        return None, None
    try:
        return last, WholeFileIO().load_checkpoint(last)
    except CheckpointError as error:
        try:
            state = WholeFileIO().load_checkpoint(before)
        except CheckpointError:
            raise error from None
        lost = str(error).partition(";")[0]
        say(f"{lost}; the state before it, after step {state['global_step']}, is whole and taken")
        return before, state


class KeepWeights(lightning.Callback):
    """After every epoch keeps the last weights, the best on the validation split, and the state.

    Args:
        run: Where to keep them.
        table: Written out before every state, which notes how many rows it had.
        every: Optimiser steps between two states inside an epoch; None keeps none there.
    """

    def __init__(self, run: Run, table: Table, every: int | None = None) -> None:
        self.run = run
        self.table = table
        self.every = every
        self.row: Row | None = None
        self.best = -1.0
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.began = False
        """Whether all that precedes the first step is done, the reading of a state with it."""

    @property
    def seconds(self) -> float:
        """Seconds of training that the present weights took, over all sessions."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Note that training begins."""
        del trainer, pl_module
        self.began = True

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write the state where it is due; at the end of an epoch that follows anyway."""
        del outputs, batch
        last = batch_idx + 1 == trainer.num_training_batches
        # Between two steps of the optimiser there are gradients, which no state holds.
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.every is None or last or not stepped or trainer.global_step % self.every:
            return
        assert isinstance(pl_module, Training)
        check_weights(trainer, pl_module)
        # Due, but logged only after this hook; the attribute is set by the connector of loggers.
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            place = {"epoch": trainer.current_epoch, "step": trainer.global_step - 1}
            self.row = {**pl_module.logged, **place}
        self._keep_state(trainer)
        self.row = None

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write all; the state comes last, so it never points beyond the weights."""
        assert isinstance(pl_module, Training)
        check_weights(trainer, pl_module)
        accuracy = trainer.callback_metrics.get("validation_accuracy")
        whole = not pl_module.recipe.schedule.is_single_step(trainer.current_epoch)
        if whole and accuracy is not None and float(accuracy) > self.best:
            self.best = float(accuracy)
            self._keep_weights(trainer, pl_module, "best")
        self._keep_weights(trainer, pl_module, "last")
        self._keep_state(trainer)

    def _keep_weights(self, trainer: lightning.Trainer, module: Training, which: str) -> None:
        kept = whole_model(module.kept)
        if trainer.is_global_zero:
            assert kept is not None
            save_model(kept, self.run.weights_file(which))

    def _keep_state(self, trainer: lightning.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # the table never lags behind the state
        trainer.save_checkpoint(self.run.state_file)

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracy, the time so far and the place in the table."""
        rows = {"rows": len(self.table.rows), "row": self.row}
        return {"best": self.best, "seconds": self.seconds, **rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back from the training state; the table was opened at its place."""
        self.best, self.seconds_before = state_dict["best"], state_dict["seconds"]
