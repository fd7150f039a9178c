"""Synapses between spiking neurons, and the pooling of spikes: what they keep is one byte a spike.

A spike needs no 32 bits to be remembered until the backward pass; these are PyTorch's own
convolution and max-pool, with the saved operand held as booleans.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class _SpikeConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        ctx.save_for_backward(s.bool(), weight)
        ctx.padding = padding
        ctx.dtypes = s.dtype, None if bias is None else bias.dtype
        return F.conv2d(s, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        fired, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        s = fired.to(d.dtype)
        return *convolution_backward(d, s, weight, ctx.padding, ctx.dtypes, wanted), None


def convolution_backward(
    d: Tensor,
    s: Tensor,
    weight: Tensor,
    padding: int,
    dtypes: tuple[torch.dtype, torch.dtype | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of spikes, weight and bias by PyTorch's dense convolution.

    Args:
        d: Gradient of the currents.
        s: Spikes in the dtype of `d`.
        weight: Kernel.
        padding: As forward.
        dtypes: Those of spikes and bias (None without one) as they were given.
        wanted: Whether spikes and weight need a gradient.
    """
    s_dtype, bias_dtype = dtypes
    ds, dw, db = torch.ops.aten.convolution_backward(
        d,
        s,
        weight.to(d.dtype),
        None if bias_dtype is None else [weight.shape[0]],
        [1, 1],
        [padding, padding],
        [1, 1],
        False,
        [0, 0],
        1,
        [wanted[0], wanted[1], bias_dtype is not None],
    )
    return (
        None if ds is None else ds.to(s_dtype),
        None if dw is None else dw.to(weight.dtype),
        None if db is None else db.to(bias_dtype),
    )


def spike_conv2d(
    s: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "D C k k"],
    bias: Float[Tensor, " D"] | None,
    padding: int,
) -> Float[Tensor, "B D H2 W2"]:
    """Convolve spikes with stride 1: each output adds the weights of the inputs that fired.

    Args:
        s: Spikes, each exactly 0 or 1; any other value gives wrong currents and gradients.
        weight: Kernel.
        bias: Added once per output, or None.
        padding: Zeros around the image, in pixels.

    Returns:
        Currents, as `torch.nn.functional.conv2d`.
    """
    current: Tensor = _SpikeConv2d.apply(s, weight, bias, padding)
    return current


class _SpikePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor) -> Tensor:
        ctx.save_for_backward(s.bool())
        return F.max_pool2d(s, 3, stride=2, padding=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (d,) = grads
        (fired,) = ctx.saved_tensors
        s = fired.to(d.dtype)
        window = [3, 3], [2, 2], [1, 1], [1, 1], False
        _, winners = torch.ops.aten.max_pool2d_with_indices(s, *window)
        ds: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(d, s, *window, winners)
        return ds


def spike_pool(s: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """Halve an image of spikes: 1 where any spike lies in the 3x3 window (stride 2, padding 1).

    A maximum of spikes is their OR. The gradient goes to the first spike of the window in reading
    order, or to the window's first pixel if it is silent, as PyTorch's max-pool decides.
    """
    pooled: Tensor = _SpikePool.apply(s)
    return pooled
