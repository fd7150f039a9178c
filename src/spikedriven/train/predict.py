"""What a trained model says about image files, or about recordings of events."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser

from spikedriven.data import DataInfo, read_sample
from spikedriven.errors import ConfigError, DataError
from spikedriven.models.sdt import SDTConfig
from spikedriven.train.run import Run


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says about one file, most probable first; or why it says nothing."""

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    """One sentence where the file could not be read."""


@torch.inference_mode()
def predict(
    run_dir: Path, paths: list[Path], *, top_k: int = 5, weights: str | None = None
) -> list[Prediction]:
    """Classify image files or recordings; one that cannot be read does not stop the others.

    Args:
        run_dir: The run's folder.
        paths: Image files, or recordings where the run was trained on events.
        top_k: Classes to name for each, at least 1.
        weights: `last` or `best`; by default what the recipe says.

    Raises:
        ConfigError: The folder is no run or has not finished, `top_k` is below 1, or `weights`
            is unknown.
        DataError: The run's metrics.json is damaged, or of another model.
        CheckpointError: The weights are damaged.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; it must be at least 1: 5 is usual")
    run = Run.open(run_dir)
    model = run.model(weights)
    info = run_info(run, model.config)
    predictions = []
    for path in paths:
        try:
            sample = read_sample(path, info)
        except DataError as error:
            predictions.append(Prediction(path=path, error=str(error)))
            continue
        logits = model(sample[None].to(model.head.weight))[0].float()
        best = logits.softmax(-1).topk(min(top_k, len(info.classes)))
        predictions.append(
            Prediction(
                path=path,
                classes=tuple(info.classes[i] for i in best.indices),
                probabilities=tuple(best.values.tolist()),
            )
        )
    return predictions


def run_info(run: Run, config: SDTConfig) -> DataInfo:
    """Return what a run knew about its data: to use it needs no dataset.

    Args:
        run: The run.
        config: That of its model, which the data must fit.

    Raises:
        ConfigError: The run has not finished.
        DataError: Its metrics.json is damaged.
    """
    if not run.has_finished:
        raise ConfigError(
            f"{run.folder} has not finished; it must have metrics.json: "
            f"continue it with spikedriven train --resume {run.folder}"
        )
    stored = run.metrics()["data"]
    if not isinstance(stored, dict):
        raise run.damaged_metrics("its data is no mapping")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataInfo)
    try:
        info = DataInfo(**parser.parse_object(stored).as_dict())
    except ArgumentError as error:
        raise run.damaged_metrics(" ".join(str(error).split())) from error
    channels = config.in_channels
    for what, found, wanted in (
        ("classes", len(info.classes), config.num_classes),
        ("channels", info.in_channels, channels),
        ("means and deviations", len(info.mean + info.std), 2 * channels),
    ):
        if found != wanted:
            raise run.damaged_metrics(f"it has {found} {what} and the model {wanted}")
    # Divided by another, pixels would be no numbers, and the image would be blamed.
    if not all(map(math.isfinite, info.mean + info.std)) or min(info.std) <= 0:
        raise run.damaged_metrics("its deviations must be above 0 and all its numbers finite")
    return info
