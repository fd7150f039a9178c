"""Leaky integrate-and-fire neurons: `reference` is the definition, the others agree with it.

`cpu` and `triton` walk once over memory for all T steps. Which one runs is decided by what it is
given, never by luck (`core/backend.py`): float32 or float64 tensors on a CPU take `cpu`, outside
of `torch.compile`; tensors on a GPU take `triton`, inside of it too; everything else `reference`.
"""

from torch import Tensor

from spikedriven.core.backend import choose
from spikedriven.core.lif import reference
from spikedriven.core.lif.reference import SIGMOID, Norm
from spikedriven.core.surrogate import Sigmoid

__all__ = ["Norm", "lif", "norm_add_lif", "norm_lif"]


def lif(
    i: Tensor,
    decay: Tensor | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
    backend: str = "auto",
) -> Tensor:
    """Fire: arguments and result as in `reference.lif`; `backend` as in `core.backend.choose`."""
    chosen = choose(i, len(i), backend)
    if chosen == "cpu":
        from spikedriven.core.lif import cpu

        return cpu.lif(i, decay, v_threshold, surrogate)
    if chosen == "triton":
        from spikedriven.core.lif import triton

        return triton.lif(i, decay, v_threshold, surrogate)
    return reference.lif(i, decay, v_threshold, surrogate)


def norm_lif(
    x: Tensor,
    norm: Norm,
    num_steps: int,
    decay: Tensor | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
    backend: str = "auto",
) -> Tensor:
    """Normalise and fire: arguments and result as in `reference.norm_lif`.

    A current in half precision is normalised in the precision of `norm`: there the membranes are;
    from `triton` its spikes come back in half precision, from the others as they were made.
    """
    if not (x.is_cuda or backend == "triton"):
        x = x.to(norm.weight.dtype)
    chosen = choose(x, num_steps, backend)
    if chosen == "triton":
        from spikedriven.core.lif import triton

        return triton.norm_lif(x, norm, num_steps, decay, v_threshold, surrogate)
    x = x.to(norm.weight.dtype)
    if chosen == "cpu":
        from spikedriven.core.lif import cpu

        return cpu.norm_lif(x, norm, num_steps, decay, v_threshold, surrogate)
    return reference.norm_lif(x, norm, num_steps, decay, v_threshold, surrogate)


def norm_add_lif(
    x: Tensor,
    norm: Norm,
    u: Tensor,
    decay: Tensor | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Normalise, add and fire: arguments and results as in `reference.norm_add_lif`."""
    if choose(x, len(x), backend) == "triton":
        from spikedriven.core.lif import triton

        return triton.norm_add_lif(x, norm, u, decay, v_threshold, surrogate)
    return reference.norm_add_lif(x.to(norm.weight.dtype), norm, u, decay, v_threshold, surrogate)
