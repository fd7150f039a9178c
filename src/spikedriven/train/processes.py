"""The processes that share one training run, and what can go wrong between them.

They are started by Lightning, from the first one, or by `torchrun`; either says in the environment
which is which (`train/rank.py`) before anything else is known.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from subprocess import Popen, TimeoutExpired
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from spikedriven.data import Place
from spikedriven.errors import BackendError, ConfigError, DataError
from spikedriven.train.config import TrainerConfig
from spikedriven.train.rank import number_said

if TYPE_CHECKING:  # evaluation and prediction come by here, and need no trainer
    import lightning

_LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Broken pipe", "gloo")

GRACE = 5.0
"""Seconds that other processes have to end by themselves once the first one has failed."""


def this_place() -> Place:
    """Return which process this is once they have found one another, for dividing data."""
    if not dist.is_initialized():
        return Place()
    return Place(dist.get_rank(), dist.get_world_size())


def on_gpu(config: TrainerConfig) -> bool:
    """Return whether a run trains on GPUs, or asks for them."""
    return config.accelerator == "gpu" or (config.accelerator == "auto" and _gpus() > 0)


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_processes(config: TrainerConfig) -> None:
    """Check that the devices which a recipe asks for are there.

    Raises:
        BackendError: Fewer GPUs, or cores, are there than are asked for.
        ConfigError: `torchrun` started another number of processes, or was not there to start
            those on several machines; or half precision is asked for without a GPU.
    """
    gpus, gpu = _gpus(), on_gpu(config)
    if gpu and gpus < config.devices:
        raise BackendError(
            f"{config.devices} GPUs are asked for and {gpus} are there; each must exist: "
            + ("set trainer.accelerator=cpu" if gpus == 0 else f"set trainer.devices={gpus}")
        )
    if not gpu and config.precision == "16-mixed":
        raise ConfigError(
            "trainer.precision is 16-mixed and the run is on a CPU, which has bfloat16 alone; "
            "float16 must have a GPU: train on one, or set trainer.precision=bf16-mixed"
        )
    cores = os.cpu_count() or 1
    if not gpu and config.devices > cores:
        raise BackendError(
            f"{config.devices} processes on the CPU are asked for and it has {cores} cores; each "
            f"must have one: set trainer.devices={cores}"
        )
    started = number_said("WORLD_SIZE", config.processes)
    if "WORLD_SIZE" not in os.environ and config.nodes > 1:
        raise ConfigError(
            f"{config.nodes} machines are asked for and nothing says which of them this is; "
            f"torchrun must start the run on each: torchrun --nnodes {config.nodes} --node-rank N "
            f"--nproc-per-node {config.devices} -m -- spikedriven train ..."
        )
    if started != config.processes:
        raise ConfigError(
            f"{started} processes were started and the recipe asks for {config.processes}; the "
            f"numbers must agree: set trainer.devices={started}"
        )


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum over all processes, the same on each; a process alone gets its own."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def begin_sum(value: Tensor) -> Callable[[], Tensor]:
    """Begin the sum over all processes, and return what waits for it; `value` stays as it is."""
    total = value.clone()
    sent = dist.all_reduce(total, async_op=True) if dist.is_initialized() else None

    def received() -> Tensor:
        if sent is not None:
            sent.wait()
        return total

    return received


def take_over(trainer: "lightning.Trainer") -> list[Popen[bytes]]:
    """Return the processes that this one started, and let Lightning know them no more.

    As soon as one of them has failed, Lightning kills this one too, which then says nothing.
    """
    known = getattr(trainer.strategy.launcher, "procs", [])
    started = list(known)
    known.clear()
    return started


def end_processes(started: Iterable[Popen[bytes]]) -> None:
    """End the processes that this one started, after an error here: alone they would wait for it.

    One that met the same error ends by itself, within moments.
    """
    for process in started:
        try:
            process.wait(GRACE)
        except TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def explained_processes(config: TrainerConfig) -> Iterator[None]:
    """Say in one sentence what went wrong between processes, or in this one alone.

    Raises:
        BackendError: A port is taken, or another process was lost.
        DataError: This process alone met damaged data; it is marked as `of_this_process`.
    """
    try:
        yield
    except DataError as error:
        error.of_this_process = config.processes > 1
        raise
    except RuntimeError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise BackendError(
                f"port {os.environ.get('MASTER_PORT', 'of the run')} is in use; the processes need "
                "one of their own to meet at: set MASTER_PORT to a free one in the environment"
            ) from error
        if config.processes > 1 and any(sign in str(error) for sign in _LOST):
            raise BackendError(
                "another process of the run was lost; all must live, and what was kept is whole: "
                "continue with spikedriven train --resume"
            ) from error
        raise
