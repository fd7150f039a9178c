"""Synapses between spiking neurons, and the pooling of spikes.

`reference` is PyTorch's dense convolution, `cpu` the same with work only where there is a spike.
Which one runs is decided by what it is given: float32 or float64 spikes on a CPU, through a
convolution that keeps the image's size, take `cpu`; every other device, type and padding, autocast
and everything under `torch.compile` take `reference`.
"""

import torch
from torch import Tensor

from spikedriven.core.synapse import reference
from spikedriven.core.synapse.reference import spike_pool
from spikedriven.core.threads import is_for_cpu_kernels

__all__ = ["spike_conv2d", "spike_pool"]


def spike_conv2d(s: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """Convolve: arguments and result as in `reference.spike_conv2d`."""
    keeps_size = weight.shape[2] == weight.shape[3] == 2 * padding + 1
    # What does not fit is left to PyTorch, which refuses it; a kernel would read beyond its arrays.
    fits = s.shape[1:2] == weight.shape[1:2] and s.ndim == weight.ndim and s.dtype == weight.dtype
    if bias is not None:
        fits = fits and bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
    if keeps_size and fits and is_for_cpu_kernels(s) and not torch.is_autocast_enabled("cpu"):
        from spikedriven.core.synapse import cpu

        return cpu.spike_conv2d(s, weight, bias)
    return reference.spike_conv2d(s, weight, bias, padding)
