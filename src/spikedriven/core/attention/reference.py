"""Spike-driven self-attention in its plain form: a sum over tokens, and a mask."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


class _Agreement(torch.autograd.Function):
    """Sum over tokens of k AND v; keeps bytes, not floats."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(k.bool(), v.bool())
        return (k * v).sum(dim=(-2, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        k, v = ctx.saved_tensors
        d = grads[0][..., None, None]
        return d * v, d * k


class _Mask(torch.autograd.Function):
    """The query where the gate is open; keeps bytes, not floats."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(q.bool(), gate.bool())
        return q * gate[..., None, None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (d,) = grads
        q, gate = ctx.saved_tensors
        return d * gate[..., None, None], (d * q).sum(dim=(-2, -1))


def agreement(
    k: Float[Tensor, "T B C H W"], v: Float[Tensor, "T B C H W"]
) -> Float[Tensor, "T B C"]:
    """Count, per channel, the tokens at which key and value both fire: integers in [0, H W]."""
    counts: Tensor = _Agreement.apply(k, v)
    return counts


def mask(q: Float[Tensor, "T B C H W"], gate: Float[Tensor, "T B C"]) -> Float[Tensor, "T B C H W"]:
    """Keep the query's spikes in the channels whose gate is open, and no others."""
    masked: Tensor = _Mask.apply(q, gate)
    return masked


def dilate_image(s: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B C H W"]:
    """Set every pixel with a spike in its 3x3 neighbourhood (the released code's `Erode`)."""
    return F.max_pool2d(s.flatten(0, 1), 3, stride=1, padding=1).unflatten(0, s.shape[:2])


def dilate_tokens(s: Float[Tensor, "T B C H W"], num_heads: int) -> Float[Tensor, "T B C H W"]:
    """Dilate 3x3 over (token in raster order, channel within its head).

    Source: the released code applies the image's dilation to a tensor that by then is [T, B, head,
        token, channel]; kept because its event-camera results were made so.
    """
    _, _, C, _, W = s.shape
    tokens = s.flatten(3).transpose(2, 3).unflatten(3, (num_heads, C // num_heads))
    per_head = tokens.transpose(2, 3).flatten(0, 2)  # [T B heads, N, C / heads]
    dilated = F.max_pool2d(per_head, 3, stride=1, padding=1)
    restored = dilated.unflatten(0, (*s.shape[:2], num_heads)).transpose(2, 3).flatten(3)
    return restored.transpose(2, 3).unflatten(3, (-1, W))
