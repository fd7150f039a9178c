"""Batch norm over the batches of all processes, where PyTorch's own works on some devices only."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from spikedriven.core.lif.reference import Norm


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        del ctx
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def synced_batch_norm(x: Float[Tensor, "N C *space"], norm: Norm) -> Float[Tensor, "N C *space"]:
    """Normalise by the statistics of this process's values and all others' together.

    A process alone gets PyTorch's batch norm. Sums are taken in float64, as in `lif/cpu.py`: a
    difference of squares of single precision would lose what a narrow channel varies by.

    Args:
        x: Values; every process calls with its own, in the same order of calls.
        norm: As in `lif.norm_lif`; its running statistics take those of all processes.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    wide = x.double()
    count = torch.full((1, x.shape[1]), x.numel() / x.shape[1], dtype=wide.dtype, device=x.device)
    sums = torch.cat([torch.stack([wide.sum(axes), wide.square().sum(axes)]), count])
    if dist.is_initialized():
        sums = _Sum.apply(sums)
    mean, square = sums[:2] / sums[2]
    var = (square - mean.square()).clamp(min=0)
    with torch.no_grad():
        number = sums[2]
        unbiased = var * (number / (number - 1).clamp(min=1))
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    shape = [-1, *[1] * (x.ndim - 2)]
    scale = norm.weight * torch.rsqrt(var + norm.eps).to(x.dtype)
    shift = norm.bias - mean.to(x.dtype) * scale
    return x * scale.view(shape) + shift.view(shape)
