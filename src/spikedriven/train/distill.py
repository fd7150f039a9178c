"""Learning from a teacher: a trained network of timm's whose answers are followed, too."""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models import load_checkpoint
from torch import Tensor, nn

from spikedriven.data import DataInfo
from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.train.config import DistillConfig


class Teacher:
    """A network that answers in evaluation mode and never learns.

    It is no part of the model under training: no checkpoint holds it.

    Args:
        network: It takes colour images, normalised by its own `pretrained_cfg`.
        info: How the images that it will be asked about are normalised.
    """

    def __init__(self, network: nn.Module, info: DataInfo) -> None:
        self.network = network.eval().requires_grad_(False)
        cfg: Any = network.pretrained_cfg
        self.size: int = cfg["input_size"][-1]
        own_mean, own_std = torch.tensor(cfg["mean"]), torch.tensor(cfg["std"])
        mean, std = torch.tensor(info.mean), torch.tensor(info.std)
        self.scale = (std / own_std).view(3, 1, 1)
        self.shift = ((mean - own_mean) / own_std).view(3, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return its logits; images of another size are first resized to its own."""
        self.network.to(images)
        own = images * self.scale.to(images) + self.shift.to(images)
        if own.shape[-1] != self.size:
            size = (self.size, self.size)
            own = F.interpolate(own, size, mode="bilinear", antialias=True)
        logits: Tensor = self.network(own)
        return logits


def open_teacher(config: DistillConfig, info: DataInfo) -> Teacher | None:
    """Return the teacher that a recipe names, or None where it names none.

    Raises:
        ConfigError: timm has no such network, it knows other classes, or the images are grey.
        CheckpointError: Its weights are missing or do not fit.
    """
    if config.teacher is None:
        return None
    if info.in_channels != 3:
        raise ConfigError(
            f"distill.teacher is {config.teacher} and {info.name} has {info.in_channels} channels; "
            "a teacher sees colour images: leave it out"
        )
    if not timm.is_model(config.teacher):
        raise ConfigError(
            f"distill.teacher is {config.teacher!r}, which timm does not know; it must be a name "
            "that timm.list_models() has: correct it"
        )
    num_classes = len(info.classes)
    try:
        if config.weights is None:
            network = timm.create_model(config.teacher, pretrained=True)
        else:
            network = timm.create_model(config.teacher, num_classes=num_classes)
            load_checkpoint(network, config.weights)
    except Exception as error:  # a download fails in as many ways as there are networks
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the weights of the teacher {config.teacher} cannot be loaded ({first}); they must "
            "be a file of its own: set distill.weights=FILE"
        ) from error
    if network.num_classes != num_classes:
        raise ConfigError(
            f"the teacher {config.teacher} knows {network.num_classes} classes and {info.name} has "
            f"{num_classes}; they must be the same: set distill.weights to one trained on the data"
        )
    return Teacher(network, info)


def distillation_loss(
    logits: Float[Tensor, "B K"], answers: Float[Tensor, "B K"], config: DistillConfig
) -> Float[Tensor, ""]:
    """Return how far the student's answers are from the teacher's.

    Soft: the divergence of both at a temperature, times its square, so that the gradient does not
    shrink with it (Hinton et al., 2015). Hard: the cross-entropy against the teacher's first choice
    (Touvron et al., ICML 2021).

    Args:
        logits: The student's, averaged over time.
        answers: The teacher's logits.
        config: Which, and the temperature.
    """
    if config.hard:
        return F.cross_entropy(logits, answers.argmax(-1))
    t = config.temperature
    student, teacher = (x / t for x in (logits, answers))
    divergence = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return t * t * divergence
