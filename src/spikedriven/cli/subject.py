"""RUN|MODEL: a trained run on its own test images, or a model's name as a small living network."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spikedriven.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from spikedriven.models.sdt import SpikeDrivenTransformer

# What stays of a published size that is only asked about its architecture.
DEPTH, WIDTH, CLASSES, TOKENS_ASIDE = 2, 64, 10, 4
SAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that fires, and what it fires on."""

    name: str
    model: "SpikeDrivenTransformer"
    """In evaluation mode."""
    x: "Tensor"
    """Sequences [B, T, C, H, W], each frame another."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_subject(name: str, *, data: str | None, checkpoint: str | None) -> Subject:
    """Open a run folder, or build a model of a known name.

    Raises:
        ConfigError: It is neither, or a run's options stand beside a model's name.
        DataError: The run's test split is empty.
    """
    from spikedriven.models.registry import list_models

    if name in list_models() and not Path(name).exists():
        if data is not None or checkpoint is not None:
            raise ConfigError(
                f"{name} is a model's name; --data and --checkpoint belong to a run: "
                "leave them out, or name a run"
            )
        return _of_model(name)
    if not Path(name).exists():
        raise ConfigError(
            f"{name} is neither a run nor a model; it must be a run's folder or one of "
            f"{', '.join(list_models())}: choose one"
        )
    return _of_run(Path(name), data, checkpoint)


def _of_model(name: str) -> Subject:
    import torch

    from spikedriven.conform import enlivened
    from spikedriven.models.registry import find_variant
    from spikedriven.models.sdt import SpikeDrivenTransformer

    published = find_variant(name).config
    config = replace(published, depth=min(DEPTH, published.depth), width=WIDTH, num_classes=CLASSES)
    torch.manual_seed(0)
    side = TOKENS_ASIDE * config.stride
    shape = (SAMPLES, config.num_steps, config.in_channels, side, side)
    x = torch.randint(0, 256, shape).float() / 255
    model = enlivened(SpikeDrivenTransformer(config), x)
    channels = config.in_channels
    return Subject(
        name=f"{name} with depth {config.depth} and width {WIDTH}, random weights",
        model=model, x=x, mean=(0.0,) * channels, std=(1.0,) * channels,
    )  # fmt: skip


def _of_run(folder: Path, data: str | None, checkpoint: str | None) -> Subject:
    import torch

    from spikedriven.train.evaluate import open_run_data
    from spikedriven.train.run import Run

    trained = Run.open(folder)
    model = trained.model(checkpoint)
    test = open_run_data(trained, model.config, Path(data) if data else None).test
    if len(test) == 0:
        raise DataError(
            f"the test split of {folder} is empty; it must hold at least one image: "
            "choose other data"
        )
    # Each step shows another test image, or a recording's next frame: what one step sees of
    # another would be noticed.
    T = model.config.num_steps
    if test.info.num_steps is None:
        images = torch.stack([test[i % len(test)][0] for i in range(SAMPLES * T)])
        x = images.unflatten(0, (SAMPLES, T))
    else:
        x = torch.stack([test[i % len(test)][0] for i in range(SAMPLES)])
    return Subject(
        name=str(folder), model=model, x=x,
        mean=test.info.mean, std=test.info.std,
    )  # fmt: skip
