"""What training minimises."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from spikedriven.train.config import LossConfig

# The released code's `means`: every logit is drawn towards it.
TET_MEAN = 1.0


def tet_loss(
    steps: Float[Tensor, "T B K"], target: Tensor, weight: float, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Temporal efficient training: the cross-entropy of every step, not of their mean.

    Args:
        steps: Logits after every step.
        target: Labels [B], or soft targets [B, K].
        weight: Share, in [0, 1), of the squared distance of all logits from 1.
        label_smoothing: Share of the target spread over all classes.

    Source: Deng et al., ICLR 2022, as in the released code (`TET_loss`, means 1.0, lamb 0.001).
    """
    every = [F.cross_entropy(step, target, label_smoothing=label_smoothing) for step in steps]
    pull = F.mse_loss(steps, torch.full_like(steps, TET_MEAN))
    return (1 - weight) * torch.stack(every).mean() + weight * pull


def loss_of_steps(
    steps: Float[Tensor, "T B K"], target: Tensor, config: LossConfig
) -> Float[Tensor, ""]:
    """Return the recipe's loss: of the mean over time, or TET's."""
    if config.tet_weight is not None:
        return tet_loss(steps, target, config.tet_weight, config.label_smoothing)
    return F.cross_entropy(steps.mean(0), target, label_smoothing=config.label_smoothing)
