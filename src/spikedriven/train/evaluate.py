"""What a trained model gets right, counted exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from spikedriven.data import ArrayDataset, DataInfo, PartSampler, Splits, make_loader, open_data
from spikedriven.errors import ConfigError, DataError
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.nn.probe import count_spikes
from spikedriven.train.config import Recipe
from spikedriven.train.predict import run_info
from spikedriven.train.processes import sum_over_processes, this_place
from spikedriven.train.run import Run

BATCH = 128

READING = ("data.image_size", "data.crop", "data.interpolation")
"""What an evaluation may set: how images are read, never which."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result over one split; every average is a total divided by `count`."""

    accuracy: float
    """Share of images whose largest logit is their class."""
    loss: float
    """Mean cross-entropy in nats."""
    count: int
    """Images."""
    confusion: list[list[int]]
    """confusion[true][said], [K][K] images."""
    firing_rates: dict[str, float]
    """Layer -> share of neurons, steps and images that fired."""
    classes: tuple[str, ...]
    """Names of the classes."""

    def worst(self, limit: int = 3) -> list[tuple[str, str, int]]:
        """Return the most frequent mistakes: (true class, said class, images)."""
        mistakes = [
            (self.classes[true], self.classes[said], count)
            for true, row in enumerate(self.confusion)
            for said, count in enumerate(row)
            if true != said and count
        ]
        return sorted(mistakes, key=lambda mistake: -mistake[2])[:limit]


def open_run_data(
    run: Run, config: SDTConfig, data_root: Path | None, settings: Sequence[str] = ()
) -> Splits:
    """Open the data of a run, or other images of the same classes.

    Args:
        run: The run.
        config: That of its model.
        data_root: Folder of the data, where it is not embedded.
        settings: `key=value`, where the images are to be read otherwise than in training.

    Raises:
        ConfigError: The model cannot take images of their size.
        DataError: The data is missing or damaged, or has other classes or channels than the run
            was trained on.
    """
    recipe = run.recipe(settings)
    splits = open_data(recipe.data, data_root, seed=recipe.seed)
    info = splits.info
    for what, found, trained in (
        ("classes", len(info.classes), config.num_classes),
        ("channels", info.in_channels, config.in_channels),
    ):
        if found != trained:
            raise DataError(
                f"{info.name} has {found} {what} and {run.folder} was trained on {trained}; they "
                "must be the same: pass another --data"
            )
    # Before a run has finished it knows no names.
    known = run_info(run, config).classes if run.has_finished else info.classes
    for number, (name, trained_name) in enumerate(zip(info.classes, known, strict=True)):
        if name != trained_name:
            raise DataError(
                f"class {number} of {info.name} is {name!r} and {run.folder} was trained on "
                f"{trained_name!r}; classes and their order must be the same: pass another --data"
            )
    check_image_size(info, config)
    return splits


def check_image_size(info: DataInfo, config: SDTConfig) -> None:
    """Check that a model's stem can halve the data's images as often as it does.

    Raises:
        ConfigError: It cannot.
    """
    if info.image_size % config.stride:
        raise ConfigError(
            f"data.image_size is {info.image_size}; with model.stem_pool={config.stem_pool} "
            f"it must be a multiple of {config.stride}: change one of them"
        )


def device_for(recipe: Recipe) -> torch.device:
    """Return the GPU where there is one and the recipe does not say `cpu`, else the CPU."""
    on_gpu = recipe.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def evaluate(
    run_dir: Path,
    *,
    data_root: Path | None = None,
    split: str = "test",
    weights: str | None = None,
    settings: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a run's weights.

    Args:
        run_dir: The run's folder.
        data_root: Folder of the data, where it is not embedded.
        split: `test` or `validation`.
        weights: `last` or `best`; by default what the recipe says.
        settings: `key=value` of how images are read, where it is not as in training:
            `data.image_size=288 data.crop=0.9`.

    Raises:
        ConfigError: The folder is no run, or split, weights or a setting are unknown.
        CheckpointError: The weights are damaged.
        DataError: The data is missing, not of the run's classes, or the split is empty.
    """
    if split not in ("test", "validation"):
        raise ConfigError(f"split is {split!r}; it must be test or validation: choose one")
    run = Run.open(run_dir)
    foreign = [word for word in settings if word.partition("=")[0] not in READING]
    if foreign:
        raise ConfigError(
            f"{foreign[0]!r} is set for an evaluation; only how images are read can be, by "
            f"{', '.join(READING)}: leave it out"
        )
    model = run.model(weights).to(device_for(run.recipe()))
    splits = open_run_data(run, model.config, data_root, settings)
    return evaluate_model(model, splits.test if split == "test" else splits.validation)


@torch.inference_mode()
def evaluate_model(model: SpikeDrivenTransformer, dataset: ArrayDataset) -> Evaluation:
    """Evaluate a model in evaluation mode; it is left in the mode it was in.

    Several processes that share a run evaluate their part each, every image in exactly one, and
    all return the result over the whole.

    Raises:
        DataError: The dataset is empty.
    """
    if len(dataset) == 0:
        raise DataError(
            "the split is empty; it must hold at least one image to be evaluated: "
            "choose another split or raise data.validation_fraction"
        )
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    num_classes = model.config.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    total_loss = torch.zeros((), dtype=torch.float64)
    place = this_place()
    left = PartSampler(len(dataset), place).own
    with count_spikes(model) as counts:
        for batch in make_loader(dataset, batch_size=BATCH, place=place):
            images, labels = (part[:left] for part in batch)
            left -= len(labels)
            if len(labels) == 0:
                break
            logits = model(images.to(parameter)).cpu().float()
            total_loss += F.cross_entropy(logits, labels, reduction="sum")
            cells = labels * num_classes + logits.argmax(-1)
            confusion += torch.bincount(cells, minlength=num_classes**2).view_as(confusion)
    fired = torch.tensor([(count.fired, count.sites) for count in counts.values()])
    for total in (confusion, total_loss, fired):
        total.copy_(sum_over_processes(total.to(parameter.device)))
    model.train(was_training)
    return Evaluation(
        accuracy=int(confusion.trace()) / len(dataset),
        loss=float(total_loss) / len(dataset),
        count=len(dataset),
        confusion=confusion.tolist(),
        firing_rates=dict(zip(counts, (fired[:, 0].double() / fired[:, 1]).tolist(), strict=True)),
        classes=dataset.info.classes,
    )
