"""Leaky integrate-and-fire neurons: `reference` is the definition, `cpu` the same in one pass.

Which one runs is decided by what it is given, never by luck: float32 or float64 tensors on a CPU
take `cpu`; every other device or type, and everything under `torch.compile` (which fuses the
reference by itself), takes `reference`.
"""

from torch import Tensor

from spikedriven.core.lif import reference
from spikedriven.core.lif.reference import SIGMOID, Norm
from spikedriven.core.surrogate import Sigmoid
from spikedriven.core.threads import is_for_cpu_kernels

__all__ = ["Norm", "lif", "norm_lif"]


def lif(
    i: Tensor,
    decay: Tensor | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
) -> Tensor:
    """Fire: arguments and result as in `reference.lif`."""
    if is_for_cpu_kernels(i):
        from spikedriven.core.lif import cpu

        return cpu.lif(i, decay, v_threshold, surrogate)
    return reference.lif(i, decay, v_threshold, surrogate)


def norm_lif(
    x: Tensor,
    norm: Norm,
    num_steps: int,
    decay: Tensor | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
) -> Tensor:
    """Normalise and fire: arguments and result as in `reference.norm_lif`."""
    if is_for_cpu_kernels(x):
        from spikedriven.core.lif import cpu

        return cpu.norm_lif(x, norm, num_steps, decay, v_threshold, surrogate)
    return reference.norm_lif(x, norm, num_steps, decay, v_threshold, surrogate)
