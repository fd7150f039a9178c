"""Data in: datasets, transforms and one loader contract.

Invariant: an item is (image float32 [C, H, W], label), or of an event camera (frames float32
[T, C, H, W], label); and both the order of a training epoch and every augmentation are a pure
function of (seed, epoch, index), never of history or workers.
"""

from spikedriven.data.config import AugmentConfig, DataConfig, DataInfo
from spikedriven.data.events import Events, is_recording, read_events, read_frames
from spikedriven.data.loaders import (
    ArrayDataset,
    EpochSampler,
    Loader,
    PartSampler,
    Place,
    make_loader,
    read_sample,
)
from spikedriven.data.resident import ResidentLoader
from spikedriven.data.sources import Splits, list_datasets, open_data

__all__ = [
    "ArrayDataset",
    "AugmentConfig",
    "DataConfig",
    "DataInfo",
    "EpochSampler",
    "Events",
    "Loader",
    "PartSampler",
    "Place",
    "ResidentLoader",
    "Splits",
    "is_recording",
    "list_datasets",
    "make_loader",
    "open_data",
    "read_events",
    "read_frames",
    "read_sample",
]
