"""Blending training images with one another, and their targets alike: mixup and CutMix."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.data.mixup import cutmix_bbox_and_lam
from torch import Tensor

from spikedriven.data.transforms import seeded_globals
from spikedriven.train.config import LossConfig


def mixed(
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, " B"],
    num_classes: int,
    config: LossConfig,
    seed: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Blend each image and target with those of another: a pure function of its arguments.

    Mixup adds a share of the other image; CutMix puts in a rectangle of it, which at a border is
    smaller than drawn, and the share with it. One of the two is drawn for the whole batch.

    Args:
        images: Images, rows and columns last.
        labels: Their classes.
        num_classes: K.
        config: `mixup` and `cutmix` are the alphas of each, `mix_probability` the share of batches
            that are mixed at all, `mix_switch` that of CutMix where both are on.
        seed: What the draw depends on.

    Returns:
        Images of the same shape and targets [B, K] that sum to one; or the labels as they are where
        the batch is not mixed.

    Source: timm's `Mixup` in batch mode; here the partner is random, not the reversed batch.
    """
    rng = np.random.default_rng(seed)
    if config.mix_probability < 1 and rng.random() >= config.mix_probability:
        return images, labels
    cuts = config.cutmix > 0
    if cuts and config.mixup > 0:
        cuts = rng.random() < config.mix_switch
    alpha = config.cutmix if cuts else config.mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(len(images))).to(images.device)
    if cuts:
        with seeded_globals(int(rng.integers(2**32))):
            (top, bottom, left, right), share = cutmix_bbox_and_lam(  # type: ignore[no-untyped-call]
                images.shape, share
            )
        blend = images.clone()
        blend[..., top:bottom, left:right] = images[partner][..., top:bottom, left:right]
    else:
        blend = share * images + (1 - share) * images[partner]
    target = F.one_hot(labels, num_classes).to(images.dtype)
    return blend, share * target + (1 - share) * target[partner]
