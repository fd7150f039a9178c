"""Which implementation runs: decided by what it is given, said once, never a silent replacement."""

import functools
import logging
import os
from importlib.util import find_spec

import torch
from torch import Tensor

from spikedriven.core.threads import is_for_cpu_kernels
from spikedriven.errors import BackendError

BACKENDS = ("auto", "reference", "triton")
# The loop over time is unrolled and its membranes stay in registers.
MAX_STEPS = 32

_log = logging.getLogger(__name__)


def choose(x: Tensor, num_steps: int, backend: str = "auto") -> str:
    """Return the implementation that runs on a tensor: `reference`, `cpu` or `triton`.

    Args:
        x: What is computed on.
        num_steps: Time steps that it walks at once, T.
        backend: `auto` takes the fused kernels of the tensor's device where they fit, else the
            reference; `reference` and `triton` are requests.

    Raises:
        BackendError: The name is unknown, or the request cannot be met.
    """
    if backend == "auto":
        if is_for_cpu_kernels(x):
            _say("cpu", "cpu", None)
            return "cpu"
        taken = "triton" if x.is_cuda and _obstacle(x, num_steps) is None else "reference"
        if not torch.compiler.is_compiling():
            _say(taken, x.device.type, _obstacle(x, num_steps) if x.is_cuda else None)
        return taken
    check_name(backend)
    if backend == "triton" and (obstacle := _obstacle(x, num_steps)) is not None:
        raise BackendError(f"the backend triton is asked for and {obstacle}: choose auto")
    return backend


def check_name(backend: str) -> None:
    """Refuse what is no backend.

    Raises:
        BackendError: The name is unknown.
    """
    if backend not in BACKENDS:
        raise BackendError(
            f"the backend is {backend!r}; it must be one of {', '.join(BACKENDS)}: choose one"
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_triton() -> bool:
    return find_spec("triton") is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def interprets() -> bool:
    """Return whether Triton's kernels are to be interpreted on a CPU, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _obstacle(x: Tensor, num_steps: int) -> str | None:
    """Say why Triton's kernels cannot run, if they cannot."""
    if not _has_triton():
        return "Triton is not installed; it must be"
    if not x.is_cuda and not interprets():
        return f"the tensor lies on {x.device.type}; it must lie on a GPU"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"the tensor is {x.dtype}; it must be real"
    if num_steps > MAX_STEPS:
        return f"there are {num_steps} time steps; there must be at most {MAX_STEPS}"
    if x.numel() == 0:
        return "the tensor is empty; it must hold something"
    return None


@functools.cache
def _say(taken: str, device: str, obstacle: str | None) -> None:
    """Note a choice, the first time that it is made."""
    reason = f", because {obstacle}" if obstacle else ""
    _log.info("backend auto on %s takes %s%s", device, taken, reason)
