"""From a recipe to a trained model in a run folder, and on from where a run stopped."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from spikedriven.data import EpochSampler, Place, Splits, open_data
from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.models.registry import create_model
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.models.weights import fill, load_model
from spikedriven.nn.synapse import sync_norms
from spikedriven.records import Record, append_records, this_command, this_commit, this_device
from spikedriven.train.checkpoint import (
    KeepWeights,
    WholeFileIO,
    foreign_state,
    newest_state,
    table_of,
)
from spikedriven.train.config import Recipe, TrainerConfig
from spikedriven.train.data import Data
from spikedriven.train.distill import open_teacher
from spikedriven.train.evaluate import check_image_size, device_for, evaluate_model
from spikedriven.train.log import line_writer, open_board, quiet_lightning
from spikedriven.train.module import Training
from spikedriven.train.processes import (
    check_processes,
    end_processes,
    explained_processes,
    on_gpu,
    this_place,
)
from spikedriven.train.progress import Bar, EpochLine
from spikedriven.train.rank import this_rank
from spikedriven.train.run import Run
from spikedriven.train.shard import ShardedStrategy, check_divisible
from spikedriven.train.watch import Watch

LOG_EVERY = 10
ALL_MB = 1 << 16
"""More megabytes than gradients have."""

# What Lightning and PyTorch raise where a training state is not as they wrote it.
_NOT_RESTORED = (
    AttributeError, IndexError, KeyError, MisconfigurationException, TypeError, ValueError,
)  # fmt: skip


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
        say: Receives one line per epoch where no bar is drawn, and what else must be said.

    Returns:
        What `metrics.json` in the folder holds.

    Raises:
        ConfigError: The recipe contradicts the data, or the folder exists or cannot be made.
        DataError: The data is missing or damaged.
        CheckpointError: A checkpoint cannot be written, and the one before it is whole; or
            `model.weights` is missing, damaged, or of another model.
        DivergedError: The loss is no longer a number.
        KeyboardInterrupt: Ctrl-C or SIGTERM; `resume` continues from the last state.
    """
    if this_rank() == 0:
        Run.check_new(run_dir)
    splits = open_data(recipe.data, data_root, seed=recipe.seed)
    check_processes(recipe.trainer)
    torch.manual_seed(recipe.seed)
    training = _training_for(recipe, splits, _begun(recipe, splits))
    run = Run.create(run_dir, recipe) if this_rank() == 0 else Run(run_dir)
    return _train(run, training, splits, show_progress, say)


def resume(
    run_dir: Path,
    *,
    data_root: Path | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Continue a run from its last state; on a CPU, to the last bit as if it never stopped.

    Arguments, result and errors as in `fit`; besides,

    Raises:
        ConfigError: The folder is no run, or the run has finished.
        DataError: The data is not what the run began with.
        CheckpointError: The training state is damaged, hostile, or of another recipe.
    """
    run = Run.open(run_dir)
    recipe = run.recipe()
    check_processes(recipe.trainer)
    if run.has_finished:
        raise ConfigError(
            f"{run_dir} has finished; only a run that stopped early can be continued: "
            "start another with --run"
        )
    splits = open_data(recipe.data, data_root, seed=recipe.seed)
    torch.manual_seed(recipe.seed)
    # Once there is a training state, the weights that it began from may be gone.
    build = _model_for if run.has_state else _begun
    training = _training_for(recipe, splits, build(recipe, splits))
    run.checkpoints.mkdir(exist_ok=True)
    return _train(run, training, splits, show_progress, say)


def _training_for(recipe: Recipe, splits: Splits, model: SpikeDrivenTransformer) -> Training:
    if recipe.trainer.sync_batch_norm:
        sync_norms(model)
    if recipe.trainer.strategy == "fsdp":
        check_divisible(model)
    return Training(model, recipe, open_teacher(recipe.distill, splits.info))


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
        if recipe.schedule.single_step_epochs:
            raise ConfigError(
                f"schedule.single_step_epochs is {recipe.schedule.single_step_epochs}; for the "
                f"frames of {info.name} it must be 0, as each step shows another: leave it out"
            )
    wanted = recipe.model.overrides()
    for name, number in found.items():
        if wanted.get(name, number) != number:
            raise ConfigError(
                f"model.{name} is {wanted[name]}; it must be {number}, as {info.name} has it: "
                f"set model.{name}={number} or choose other data"
            )
    model = create_model(recipe.model.name, **(wanted | found))
    check_image_size(info, model.config)
    if len(splits.train) == 0:
        raise ConfigError(
            f"data.validation_fraction is {recipe.data.validation_fraction} and holds out every "
            "training image; it must leave some: lower it"
        )
    _check_statistics(recipe, splits, model.config)
    if recipe.evaluate == "best" and len(splits.validation) == 0:
        raise ConfigError(
            "evaluate is best and the validation split is empty; it must hold images to choose by: "
            "raise data.validation_fraction, or set evaluate=last"
        )
    return model


def _check_statistics(recipe: Recipe, splits: Splits, config: SDTConfig) -> None:
    """Check that batch norm, which knows no variance of one value, never meets one alone.

    Raises:
        ConfigError: The smallest batch has one image, of one token, at one step.
    """
    tokens = (splits.info.image_size // config.stride) ** 2
    steps = 1 if recipe.schedule.single_step_epochs else config.num_steps
    ranks, size = recipe.trainer.processes, recipe.data.batch_size
    # The last process has the smallest part of the last batch.
    sampler = EpochSampler(len(splits.train), recipe.seed, size, Place(ranks - 1, ranks))
    images = len(sampler) % size or size
    if tokens * steps * images == 1 and not recipe.trainer.sync_batch_norm:
        raise ConfigError(
            f"a batch of the {len(splits.train)} training images has one image, at one step and of "
            "one token; batch norm must see more than one value: change data.batch_size, or raise "
            "data.image_size or model.num_steps"
        )


def _train(
    run: Run,
    training: Training,
    splits: Splits,
    show_progress: bool,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    write = line_writer(run, say)
    with run.held(write) if this_rank() == 0 else nullcontext():
        return _train_alone(run, training, splits, show_progress, say)


def _train_alone(
    run: Run,
    training: Training,
    splits: Splits,
    show_progress: bool,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    recipe = training.recipe
    config = recipe.trainer
    write = line_writer(run, say)
    path, state = newest_state(run, write)
    table = table_of(run, state, write)
    watch, keep = Watch(), KeepWeights(run, table, config.checkpoint_every)
    is_double = config.precision == "64-true"
    if is_double:
        training.double()  # Lightning does so after it has read a state, and rounds what it reads
    # A loss that is no number is met before anything is kept; an epoch is announced once it is.
    epoch_line = EpochLine(line_writer(run, None if show_progress else say))
    data = Data(recipe, splits)
    # Before Lightning does, which would miss the old shapes of a model for other classes first.
    if state is not None and Data.__qualname__ in state:
        data.load_state_dict(state[Data.__qualname__])
    callbacks = [watch, keep, epoch_line, *([Bar()] if show_progress else [])]
    with quiet_lightning(), _explained(run), explained_processes(config):
        trainer = lightning.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=_strategy(config),
            use_distributed_sampler=False,  # ours divide every batch, and lose no sample
            precision=None if is_double else config.precision,  # type: ignore[arg-type]
            gradient_clip_val=config.gradient_clip,
            accumulate_grad_batches=config.accumulate,
            max_epochs=recipe.schedule.total_epochs,
            logger=[table, open_board(run, state["global_step"] if state else 0)],
            callbacks=callbacks,
            # By its flag, Lightning grants double precision to some strategies only.
            plugins=[WholeFileIO(), *([DoublePrecision()] if is_double else [])],
            # Under it gathered weights fail, as Lightning notes of its own FSDP (pytorch#95957).
            inference_mode=config.strategy != "fsdp",
            enable_checkpointing=False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            log_every_n_steps=LOG_EVERY,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(training, datamodule=data, ckpt_path=path)
        except SystemExit:
            if watch.interrupted:
                end_processes(watch.started)
                raise KeyboardInterrupt from None
            raise
        except Exception as error:
            end_processes(watch.started)
            # Until then, a run that continues has only taken its state apart.
            if path is not None and not keep.began and isinstance(error, _NOT_RESTORED):
                raise foreign_state(path, "content") from error
            raise
        return _finish(run, recipe, splits, keep.seconds)


def _strategy(config: TrainerConfig) -> str | Strategy:
    if config.processes == 1:
        return "auto"
    if config.strategy == "fsdp":
        return ShardedStrategy(config.processes)
    # Statistics are shared where they are read, which is in validation (`Training`), not in every
    # step. Gradients lie where they are sent from; on a CPU all go at once, since there the cores
    # that send are those that compute.
    bucket: dict[str, Any] = {} if on_gpu(config) else {"bucket_cap_mb": ALL_MB}
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, **bucket)


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


def _finish(run: Run, recipe: Recipe, splits: Splits, seconds: float) -> dict[str, Any]:
    """Test once, each process its part, and write down what came out."""
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
    if this_place().rank > 0:  # Lightning has taken back what it said in the environment
        return metrics
    subject = f"{recipe.model.name} on {splits.info.name}"
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
