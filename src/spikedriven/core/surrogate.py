"""The step that makes a spike, and the smooth derivative that stands in for its own."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """The step's stand-in is sigmoid(alpha x). Source: the released code, where alpha is 4."""

    alpha: float = 4.0
    """Steepness; the derivative at the threshold is alpha / 4."""

    def primitive(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return sigmoid(alpha x), the smooth step whose derivative is used."""
        return torch.sigmoid(self.alpha * x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return alpha p (1 - p) with p = sigmoid(alpha x)."""
        p = self.primitive(x)
        return self.alpha * p * (1 - p)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: Sigmoid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *ds: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ds[0] * ctx.surrogate.derivative(x), None


def spike(x: Float[Tensor, "*shape"], surrogate: Sigmoid) -> Float[Tensor, "*shape"]:
    """Fire where x >= 0. A tie fires: the package decides that here and in the fused kernels only.

    Args:
        x: Distance of the membrane from its threshold, any shape.
        surrogate: Derivative used in the backward pass.

    Returns:
        Spikes of the shape and dtype of `x`, each exactly 0 or 1.
    """
    spikes: Tensor = _Spike.apply(x, surrogate)
    return spikes
