"""The neuron, in the shortest form that is still the whole truth. Every faster file agrees with it.

Start reading here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spikedriven.core.surrogate import Sigmoid, spike

SIGMOID = Sigmoid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """The batch normalisation in front of a neuron: what `torch.nn.functional.batch_norm` takes."""

    weight: Float[Tensor, " C"]
    bias: Float[Tensor, " C"]
    running_mean: Float[Tensor, " C"]
    running_var: Float[Tensor, " C"]
    training: bool
    """Normalise by the batch and update the running statistics in place; else by the latter."""
    momentum: float = 0.1
    eps: float = 1e-5


def lif(
    i: Float[Tensor, " T *shape"],
    decay: Float[Tensor, ""] | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
) -> Float[Tensor, " T *shape"]:
    """Run leaky integrate-and-fire neurons over a whole input sequence.

    Per step t, with u the membrane before and v after the reset, and decay = 1/tau::

        u[t] = v[t-1] + (i[t] - v[t-1]) * decay
        s[t] = 1 if u[t] >= v_threshold else 0
        v[t] = 0 if s[t] else u[t]                           v[-1] = 0

    Args:
        i: Input current, [T, *shape], in units of the membrane.
        decay: 1/tau in (0, 1]: the share of the gap to the input that one step closes. A tensor of
            no dimensions where it is learned (the parametric neuron).
        v_threshold: Firing threshold.
        surrogate: Derivative of the step used in the backward pass.

    Returns:
        Spikes, [T, *shape], each exactly 0 or 1, in the dtype of `i`.

    Numerics: state is kept in the dtype of `i`; a tie (u == v_threshold) fires; the reset passes no
        gradient to the spike that caused it.
    Source: Yao et al., NeurIPS 2023, eq. 1-3, in the scaling of the released code, whose input is
        multiplied by 1/tau: equal to the paper's beta = 0.5 with the thresholds doubled.

    Example:
        A constant current of 1.2 needs three steps to reach the threshold:

        >>> lif(torch.full((6, 1), 1.2)).flatten().tolist()
        [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    """
    v = torch.zeros_like(i[0])
    spikes = []
    for i_t in i.unbind(0):
        u = v + (i_t - v) * decay  # charge
        s = spike(u - v_threshold, surrogate)  # fire
        v = u * (1 - s.detach())  # hard reset; passes no gradient to s
        spikes.append(s)
    return torch.stack(spikes)


def norm_lif(
    x: Float[Tensor, "S B C *space"],
    norm: Norm,
    num_steps: int,
    decay: Float[Tensor, ""] | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
) -> Float[Tensor, "T B C *space"]:
    """Normalise a current over time, batch and space, then fire.

    Args:
        x: Raw current, [S, B, C, *space], with S = T, or S = 1 for a current that is the same at
            every step (a static image): it is then repeated, not recomputed.
        norm: Batch normalisation of the channels; its statistics pool time, batch and space.
        num_steps: T.
        decay: As in `lif`.
        v_threshold: As in `lif`.
        surrogate: As in `lif`.

    Returns:
        Spikes, [T, B, C, *space], each exactly 0 or 1, in the dtype of `x`.
    """
    i = _normalised(x.expand(num_steps, *x.shape[1:]), norm)
    return lif(i, decay, v_threshold, surrogate)


def norm_add_lif(
    x: Float[Tensor, "T B C *space"],
    norm: Norm,
    u: Float[Tensor, "T B C *space"],
    decay: Float[Tensor, ""] | float = 0.5,
    v_threshold: float = 1.0,
    surrogate: Sigmoid = SIGMOID,
) -> tuple[Float[Tensor, "T B C *space"], Float[Tensor, "T B C *space"]]:
    """Normalise a current, add it to the membrane stream, and fire on the sum.

    Args:
        x: Raw current, [T, B, C, *space].
        norm: Batch normalisation of its channels, as in `norm_lif`.
        u: The membrane stream so far, of the same shape.
        decay: As in `lif`.
        v_threshold: As in `lif`.
        surrogate: As in `lif`.

    Returns:
        The stream after the addition, in the dtype of `u`, and the spikes of neurons fed by it, in
        the dtype of `x`.
    """
    stream = (u + _normalised(x, norm)).to(u.dtype)
    return stream, lif(stream, decay, v_threshold, surrogate).to(x.dtype)


def _normalised(x: Float[Tensor, "T B C *space"], norm: Norm) -> Float[Tensor, "T B C *space"]:
    images = x.flatten(0, 1)
    if not torch.compiler.is_compiling() and len(images) == 1 and images.ndim == 4:
        # Strides over one image mean nothing, but by them PyTorch's backward pass on a CPU decides
        # how its gradient lies, and can be wrong: here they say it. A graph is for any number.
        images = images.clone(memory_format=torch.channels_last)
    i = F.batch_norm(
        images,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    )
    return i.unflatten(0, x.shape[:2])
