"""Data in: datasets, transforms and one loader contract.

Invariant: an item is (image float32 [C, H, W], label), and both the order of a training epoch and
every augmentation are a pure function of (seed, epoch, index), never of history or workers.
"""

from spikedriven.data.config import AugmentConfig, DataConfig, DataInfo
from spikedriven.data.loaders import ArrayDataset, EpochSampler, make_loader
from spikedriven.data.resident import ResidentLoader
from spikedriven.data.sources import Splits, list_datasets, open_data
from spikedriven.data.transforms import read_image

__all__ = [
    "ArrayDataset",
    "AugmentConfig",
    "DataConfig",
    "DataInfo",
    "EpochSampler",
    "ResidentLoader",
    "Splits",
    "list_datasets",
    "make_loader",
    "open_data",
    "read_image",
]
