"""Which of the processes that share a training run this one is, as the environment says.

Known before anything else is, and without torch, for which the command's errors do not wait.
"""

import os

from spikedriven.errors import ConfigError


def this_rank() -> int:
    """Return which process of the run this is, as whoever started it says; the first is 0.

    Raises:
        ConfigError: What the environment says is no number, or is beyond that of the processes.
    """
    name = "RANK" if "RANK" in os.environ else "LOCAL_RANK"
    rank, ranks = number_said(name, 0), number_said("WORLD_SIZE", 1)
    if rank >= ranks and rank > 0:
        raise ConfigError(
            f"{name} is {rank} in the environment and WORLD_SIZE is {ranks}; a rank must be below "
            f"the number of processes: unset {name}, or start the run with torchrun"
        )
    return rank


def number_said(name: str, default: int) -> int:
    """Return the number that a variable of the environment holds, or the default without it.

    Raises:
        ConfigError: It holds no number.
    """
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(
            f"{name} is {value!r} in the environment; it must be a whole number, as torchrun sets "
            f"it: unset {name}"
        )
    return int(value)
