"""From a recipe to a trained model in a run folder, and on from where a run stopped."""

import csv
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from spikedriven.data import EpochSampler, Splits, make_loader, open_data
from spikedriven.errors import BackendError, ConfigError, SpikeDrivenError
from spikedriven.models.registry import create_model
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.models.weights import load_model
from spikedriven.records import Record, append_records, this_command, this_commit, this_device
from spikedriven.train.checkpoint import KeepWeights, WholeFileIO
from spikedriven.train.evaluate import evaluate_model
from spikedriven.train.module import Training
from spikedriven.train.progress import Bar, EpochLine
from spikedriven.train.recipe import Recipe
from spikedriven.train.run import Run

LOG_EVERY = 10


class DivergedError(SpikeDrivenError):
    """The loss is no longer a number."""


class _Watch(lightning.Callback):
    """Gives each epoch its order of the data, stops at a loss that is no number, notes Ctrl-C."""

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        del pl_module
        loader = trainer.train_dataloader
        assert loader is not None
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.set_epoch(trainer.current_epoch)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        del pl_module, batch
        if not math.isfinite(outputs["loss"]):
            raise DivergedError(
                f"the loss is {float(outputs['loss'])} in epoch {trainer.current_epoch + 1}, step "
                f"{batch_idx + 1}; it must be a number, and the checkpoints of the epoch before "
                "are whole: lower optimizer.lr or set trainer.gradient_clip=1.0"
            )

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        del trainer, pl_module
        self.interrupted = isinstance(exception, KeyboardInterrupt)


def fit(
    recipe: Recipe,
    *,
    run_dir: Path,
    data_root: Path | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train a fresh model, test it once, and leave everything in a folder.

    Args:
        recipe: What to do.
        run_dir: Folder to make; it must not exist.
        data_root: Folder of the data, where it is not embedded.
        show_progress: Draw a progress bar on the terminal.
        say: Receives one line per epoch.

    Returns:
        What `metrics.json` in the folder holds.

    Raises:
        ConfigError: The recipe contradicts the data, or the folder exists or cannot be made.
        DataError: The data is missing or damaged.
        CheckpointError: A checkpoint cannot be written; the one before it is whole.
        DivergedError: The loss is no longer a number.
        KeyboardInterrupt: Ctrl-C; `resume` continues from the last whole epoch.
    """
    splits = open_data(recipe.data, data_root, seed=recipe.seed)
    _check_devices(recipe)
    torch.manual_seed(recipe.seed)
    model = _model_for(recipe, splits)
    return _train(Run.create(run_dir, recipe), model, splits, show_progress, say)


def resume(
    run_dir: Path,
    *,
    data_root: Path | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Continue a run after its last whole epoch, with the numbers it would have had.

    Arguments, result and errors as in `fit`.
    """
    run = Run.open(run_dir)
    recipe = run.recipe()
    _check_devices(recipe)
    if run.metrics():
        raise ConfigError(
            f"{run_dir} has finished; only a run that stopped early can be continued: "
            "start another with --run"
        )
    splits = open_data(recipe.data, data_root, seed=recipe.seed)
    torch.manual_seed(recipe.seed)
    return _train(run, _model_for(recipe, splits), splits, show_progress, say)


def _model_for(recipe: Recipe, splits: Splits) -> SpikeDrivenTransformer:
    info = splits.info
    model = create_model(
        recipe.model.name,
        **recipe.model.overrides(),
        num_classes=len(info.classes),
        in_channels=info.in_channels,
    )
    stride = model.config.stride
    if info.image_size % stride:
        raise ConfigError(
            f"data.image_size is {info.image_size}; with model.stem_pool={model.config.stem_pool} "
            f"it must be a multiple of {stride}: change one of them"
        )
    if len(splits.train) == 0:
        raise ConfigError(
            "no training image is left; data.validation_fraction must leave some: lower it"
        )
    return model


def _check_devices(recipe: Recipe) -> None:
    wanted, found = recipe.trainer, torch.cuda.device_count()
    if wanted.accelerator == "gpu" and found < wanted.devices:
        raise BackendError(
            f"{wanted.devices} GPUs are asked for and {found} are there; there must be as many: "
            "set trainer.accelerator=cpu or trainer.devices"
        )


def _train(
    run: Run,
    model: SpikeDrivenTransformer,
    splits: Splits,
    show_progress: bool,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    recipe = run.recipe()
    watch = _Watch()
    callbacks: list[lightning.Callback] = [watch]
    callbacks += [Bar()] if show_progress else []
    callbacks += [EpochLine(say)] if say is not None else []
    callbacks.append(KeepWeights(run))
    resuming = run.state_file.exists()
    earlier = _logged_rows(run) if resuming else []
    training = Training(model, recipe)
    started = time.monotonic()
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=recipe.trainer.accelerator,
            devices=recipe.trainer.devices,
            precision=recipe.trainer.precision,  # type: ignore[arg-type]
            gradient_clip_val=recipe.trainer.gradient_clip,
            max_epochs=recipe.schedule.total_epochs,
            logger=[
                CSVLogger(run.folder, name="", version=""),
                TensorBoardLogger(run.folder, name="tensorboard", version=""),
            ],
            callbacks=callbacks,
            plugins=[WholeFileIO()],
            enable_checkpointing=False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            log_every_n_steps=LOG_EVERY,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        seconds_before = _seconds_so_far(run)
        try:
            _fit(trainer, training, splits, recipe, run.state_file if resuming else None)
        except SystemExit:
            if watch.interrupted:
                raise KeyboardInterrupt from None
            raise
        finally:
            _note_seconds(run, seconds_before + time.monotonic() - started)
            _join_logs(run, earlier)
    return _finish(run, model, splits, _seconds_so_far(run))


def _fit(
    trainer: lightning.Trainer,
    training: Training,
    splits: Splits,
    recipe: Recipe,
    state: Path | None,
) -> None:
    data = recipe.data
    train = make_loader(
        splits.train,
        batch_size=data.batch_size,
        shuffle=True,
        seed=recipe.seed,
        num_workers=data.num_workers,
    )
    validation = (
        make_loader(splits.validation, batch_size=data.batch_size, num_workers=data.num_workers)
        if len(splits.validation)
        else None
    )
    trainer.fit(training, train, validation, ckpt_path=state)


def _finish(
    run: Run, model: SpikeDrivenTransformer, splits: Splits, seconds: float
) -> dict[str, Any]:
    """Test once, and write down what came out."""
    recipe = run.recipe()
    tested = load_model(run.weights_file(recipe.evaluate))
    result = evaluate_model(tested, splits.test)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    metrics = {
        "test_accuracy": result.accuracy,
        "test_loss": result.loss,
        "test_count": result.count,
        "num_parameters": num_parameters,
        "train_seconds": seconds,
        "model": recipe.model.name,
        "seed": recipe.seed,
        "weights": recipe.evaluate,
        "epochs": recipe.schedule.total_epochs,
        "firing_rates": result.firing_rates,
        "confusion": result.confusion,
        "data": asdict(splits.info),
        "commit": this_commit(),
        "device": this_device(),
    }
    run.metrics_file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    subject = f"{recipe.model.name} on {recipe.data.name}"
    values = [
        ("test_accuracy", result.accuracy, "1", result.count),
        ("train_seconds", seconds, "s", 1),
        ("num_parameters", num_parameters, "1", 1),
    ]
    append_records(
        run.records_file,
        (
            Record(
                metric=metric,
                value=value,
                unit=unit,
                subject=subject,
                count=count,
                command=this_command(),
                commit=this_commit(),
                device=this_device(),
                context={"seed": recipe.seed, "torch": torch.__version__},
            )
            for metric, value, unit, count in values
        ),
    )
    return metrics


# ------------------------------------------------------------------ what Lightning leaves to us


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and hints about workers off the screen."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics|tensorboard)\b.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _log_file(run: Run) -> Path:
    return run.folder / "metrics.csv"


def _logged_rows(run: Run) -> list[dict[str, str]]:
    """Return the log up to the last whole epoch; what came after it will be logged again."""
    state = WholeFileIO().load_checkpoint(run.state_file)
    if not _log_file(run).exists():
        return []
    with _log_file(run).open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["step"]) < state["global_step"]]


def _join_logs(run: Run, earlier: list[dict[str, str]]) -> None:
    """Put the rows of before an interruption in front of those of after it."""
    if not earlier or not _log_file(run).exists():
        return
    with _log_file(run).open(newline="") as file:
        start = int(earlier[-1]["step"])
        later = [row for row in csv.DictReader(file) if int(row["step"]) > start]
    names = list(dict.fromkeys(name for row in [*earlier, *later] for name in row))
    with _log_file(run).open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows([*earlier, *later])


def _seconds_file(run: Run) -> Path:
    return run.checkpoints / "seconds.json"


def _seconds_so_far(run: Run) -> float:
    file = _seconds_file(run)
    return float(json.loads(file.read_text())) if file.exists() else 0.0


def _note_seconds(run: Run, seconds: float) -> None:
    _seconds_file(run).write_text(json.dumps(seconds))
