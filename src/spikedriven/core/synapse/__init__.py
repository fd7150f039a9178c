"""Synapses between spiking neurons, and the pooling of spikes.

`reference` is PyTorch's dense convolution and pool, `cpu` the same with work only where there is a
spike, `triton` the reference with its spikes kept as bits. Which one runs is decided by what it is
given (`core/backend.py`): float32 or float64 spikes on a CPU, through a convolution that keeps the
image's size, take `cpu`; spikes on a GPU `triton`; every other type and padding, and on a CPU
autocast and everything under `torch.compile`, take `reference`.
"""

import torch
from torch import Tensor

from spikedriven.core.backend import choose
from spikedriven.core.synapse import reference

__all__ = ["spike_conv2d", "spike_pool"]


def spike_pool(s: Tensor, backend: str = "auto") -> Tensor:
    """Halve an image: arguments and result as in `reference.spike_pool`."""
    chosen = choose(s, 1, backend)
    if chosen == "triton":
        from spikedriven.core.synapse import triton

        return triton.spike_pool(s)
    if chosen == "cpu" and s.ndim == 4:
        from spikedriven.core.synapse import cpu

        return cpu.spike_pool(s)
    return reference.spike_pool(s)


def spike_conv2d(
    s: Tensor, weight: Tensor, bias: Tensor | None, padding: int, backend: str = "auto"
) -> Tensor:
    """Convolve: arguments and result as in `reference.spike_conv2d`."""
    chosen = choose(s, 1, backend)
    if chosen == "triton":
        from spikedriven.core.synapse import triton

        return triton.spike_conv2d(s, weight, bias, padding)
    keeps_size = weight.shape[2] == weight.shape[3] == 2 * padding + 1
    # What does not fit is left to PyTorch, which refuses it; a kernel would read beyond its arrays.
    fits = s.shape[1:2] == weight.shape[1:2] and s.ndim == weight.ndim and s.dtype == weight.dtype
    if bias is not None:
        fits = fits and bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
    if keeps_size and fits and chosen == "cpu" and not torch.is_autocast_enabled("cpu"):
        from spikedriven.core.synapse import cpu

        return cpu.spike_conv2d(s, weight, bias)
    return reference.spike_conv2d(s, weight, bias, padding)
