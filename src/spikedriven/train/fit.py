"""From a recipe to a trained model in a run folder, and on from where a run stopped."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch

from spikedriven.data import ResidentLoader, Splits, make_loader, open_data
from spikedriven.errors import BackendError, CheckpointError, ConfigError
from spikedriven.models.registry import create_model
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.models.weights import fill, load_model
from spikedriven.records import Record, append_records, this_command, this_commit, this_device
from spikedriven.train.checkpoint import KeepWeights, WholeFileIO
from spikedriven.train.config import Recipe
from spikedriven.train.evaluate import device_for, evaluate_model
from spikedriven.train.log import line_writer, open_loggers, quiet_lightning
from spikedriven.train.module import Training
from spikedriven.train.progress import Bar, EpochLine
from spikedriven.train.run import Run
from spikedriven.train.watch import Watch

LOG_EVERY = 10


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
        CheckpointError: A checkpoint cannot be written, and the one before it is whole; or
            `model.weights` is missing, damaged, or of another model.
        DivergedError: The loss is no longer a number.
        KeyboardInterrupt: Ctrl-C or SIGTERM; `resume` continues from the last whole epoch.
    """
    splits = open_data(recipe.data, data_root, seed=recipe.seed)
    _check_devices(recipe)
    torch.manual_seed(recipe.seed)
    model = _begun(recipe, splits)
    return _train(Run.create(run_dir, recipe), model, splits, show_progress, say)


def resume(
    run_dir: Path,
    *,
    data_root: Path | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Continue a run after its last whole epoch; on a CPU, to the last bit as if never stopped.

    Arguments, result and errors as in `fit`; besides,

    Raises:
        ConfigError: The folder is no run, or the run has finished.
        CheckpointError: The training state is damaged, hostile, or of another recipe.
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
    # Once there is a training state, the weights that it began from may be gone.
    build = _model_for if run.state_file.exists() else _begun
    return _train(run, build(recipe, splits), splits, show_progress, say)


def _begun(recipe: Recipe, splits: Splits) -> SpikeDrivenTransformer:
    model = _model_for(recipe, splits)
    if recipe.model.weights is not None:
        begin = Path(recipe.model.weights)
        source = Run.open(begin).model() if begin.is_dir() else load_model(begin)
        fill(model, source.float().state_dict(), f"model.weights={begin}")
    return model


def _model_for(recipe: Recipe, splits: Splits) -> SpikeDrivenTransformer:
    info = splits.info
    found = {"num_classes": len(info.classes), "in_channels": info.in_channels}
    if info.num_steps is not None:
        found["num_steps"] = info.num_steps
    wanted = recipe.model.overrides()
    for name, number in found.items():
        if wanted.get(name, number) != number:
            raise ConfigError(
                f"model.{name} is {wanted[name]}; it must be {number}, as {info.name} has it: "
                "leave it out"
            )
    model = create_model(recipe.model.name, **(wanted | found))
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
    if recipe.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise BackendError(
            "a GPU is asked for and none is there; the accelerator must exist: "
            "set trainer.accelerator=cpu"
        )


def _train(
    run: Run,
    model: SpikeDrivenTransformer,
    splits: Splits,
    show_progress: bool,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    recipe = run.recipe()
    state = run.state_file if run.state_file.exists() else None
    steps_done = WholeFileIO().load_checkpoint(state)["global_step"] if state else 0
    watch, keep = Watch(), KeepWeights(run)
    # A weight that is no number is met before it is kept; an epoch is announced once it is.
    callbacks = [watch, keep, EpochLine(line_writer(run, say)), *([Bar()] if show_progress else [])]
    with quiet_lightning(), _explained(run):
        trainer = lightning.Trainer(
            accelerator=recipe.trainer.accelerator,
            devices=1,
            precision=recipe.trainer.precision,  # type: ignore[arg-type]
            gradient_clip_val=recipe.trainer.gradient_clip,
            max_epochs=recipe.schedule.total_epochs,
            logger=open_loggers(run, steps_done),
            callbacks=callbacks,
            plugins=[WholeFileIO()],
            enable_checkpointing=False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            log_every_n_steps=LOG_EVERY,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(Training(model, recipe), *_loaders(recipe, splits), ckpt_path=state)
        except SystemExit:
            if watch.interrupted:
                raise KeyboardInterrupt from None
            raise
        return _finish(run, splits, keep.seconds)


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Say in one sentence that the run folder can no longer be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise CheckpointError(
            f"{run.folder} could not be written ({error.strerror}), and its checkpoints are whole; "
            "it must be writable and have room: free some space and continue with "
            f"spikedriven train --resume {run.folder}"
        ) from error


def _loaders(recipe: Recipe, splits: Splits) -> tuple[Any, Any]:
    data = recipe.data
    train: Any
    if data.resident:
        train = ResidentLoader(
            splits.train,
            batch_size=data.batch_size,
            device=device_for(recipe),
            seed=recipe.seed,
        )
    else:
        train = make_loader(
            splits.train,
            batch_size=data.batch_size,
            shuffle=True,
            seed=recipe.seed,
            num_workers=data.num_workers,
        )
    if len(splits.validation) == 0:
        return train, None
    return train, make_loader(
        splits.validation, batch_size=data.batch_size, num_workers=data.num_workers
    )


def _finish(run: Run, splits: Splits, seconds: float) -> dict[str, Any]:
    """Test once, and write down what came out."""
    recipe = run.recipe()
    device = device_for(recipe)
    model = run.model().to(device)
    result = evaluate_model(model, splits.test)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    commit, machine = this_commit(), this_device()
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}; {machine}"
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
        "commit": commit,
        "device": machine,
    }
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
                commit=commit,
                device=machine,
                context={"seed": recipe.seed, "torch": torch.__version__},
            )
            for metric, value, unit, count in values
        ),
    )
    run.write_metrics(metrics)  # last: with it the run has finished
    return metrics
