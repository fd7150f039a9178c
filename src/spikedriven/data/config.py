"""What can be set about data, and what a dataset says about itself."""

import re
from dataclasses import dataclass, field

from spikedriven.errors import ConfigError, check_types

# timm passes over what it does not know; here every part must be one that it does.
_RAND_AUGMENT = re.compile(r"rand(-(m\d+(\.\d+)?|n[1-9]\d*|mstd\d+(\.\d+)?|mmax\d+|inc[01]))+")


SIZE_MOST = 2048
"""Pixels of a side that is not taken for a slip: one image of it already fills gigabytes."""

BATCH_MOST = 2**20
"""Images of a batch that is not taken for a slip."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training images are varied; everything is off by default."""

    horizontal_flip: float = 0.0
    """Probability of a mirror image."""
    crop_padding: int = 0
    """Shift by up to this many pixels along each axis, filling with black."""
    rotation: float = 0.0
    """Rotate by up to this many degrees either way."""
    zoom: float = 0.0
    """Scale by up to this share either way: 0.1 means 0.9 to 1.1."""
    rand_augment: str | None = None
    """timm's RandAugment, e.g. `rand-m9-n1-mstd0.4-inc1`; colour images only."""
    crop_scale: float | None = None
    """Smallest share of the area that a random crop keeps (sides 3:4 to 4:3), before it is resized
    to the image's size; None crops the middle, as in evaluation."""
    roll: int = 0
    """Shift by up to this many pixels along each axis; what leaves on one side comes back on the
    other. All frames of a recording move together."""
    cutout: int = 0
    """Side in pixels of one square, anywhere, that is emptied; the same in all frames."""

    def __post_init__(self) -> None:
        check_types(self, "data.augment.")
        if not 0 <= self.horizontal_flip <= 1:
            raise ConfigError(
                f"data.augment.horizontal_flip is {self.horizontal_flip}; a probability must lie "
                "in [0, 1]: 0.5 is usual"
            )
        for name, limit in (
            ("crop_padding", 32), ("rotation", 180), ("zoom", 0.9), ("roll", 32), ("cutout", 128),
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= limit:
                raise ConfigError(
                    f"data.augment.{name} is {getattr(self, name)}; it must lie in [0, {limit}]: "
                    "use 0 for none"
                )
        if self.crop_scale is not None and not 0 < self.crop_scale <= 1:
            raise ConfigError(
                f"data.augment.crop_scale is {self.crop_scale}; a share of the area must lie in "
                "(0, 1]: 0.08 is usual, leave it out for none"
            )
        if self.rand_augment is not None and not _RAND_AUGMENT.fullmatch(self.rand_augment):
            raise ConfigError(
                f"data.augment.rand_augment is {self.rand_augment!r}; it must be timm's notation: "
                "write for example rand-m9-n1-mstd0.4-inc1"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, at which size, varied how."""

    name: str
    """One of `list_datasets()`."""
    image_size: int | None = None
    """Side in pixels; None keeps the dataset's own."""
    crop: float = 1.0
    """Evaluation of image files: side of the middle that is kept, over the shorter side."""
    interpolation: str = "bilinear"
    """How image files are resized: `bilinear` or `bicubic`, averaging where they shrink."""
    num_frames: int | None = None
    """Frames that a recording of events is divided into, the model's T; None takes 16."""
    validation_fraction: float = 0.1
    """Share of the training images held out to choose by; the same ones for every seed."""
    batch_size: int = 64
    """Images per training step."""
    num_workers: int = 0
    """Processes that prepare images; 0 prepares them in the training process."""
    resident: bool = False
    """Keep the training images on the training device as bytes and vary them there."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Variation of the training images."""

    def __post_init__(self) -> None:
        check_types(self, "data.")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}; it must lie in [0, 1): "
                "0.1 holds out a tenth"
            )
        if not 0.5 <= self.crop <= 1:
            raise ConfigError(
                f"data.crop is {self.crop}; it must lie in [0.5, 1]: 0.95 keeps the middle 95 % of "
                "the shorter side"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(
                f"data.interpolation is {self.interpolation!r}; it must be bilinear or bicubic: "
                "choose one"
            )
        if not 1 <= self.batch_size <= BATCH_MOST:
            raise ConfigError(
                f"data.batch_size is {self.batch_size}; it must lie in 1 to {BATCH_MOST}: "
                "64 is usual"
            )
        if self.num_workers < 0:
            raise ConfigError(
                f"data.num_workers is {self.num_workers}; it must be at least 0: use 0 for none"
            )
        if self.num_frames is not None and self.num_frames < 1:
            raise ConfigError(
                f"data.num_frames is {self.num_frames}; it must be at least 1: 16 is usual"
            )
        if self.image_size is not None and not 4 <= self.image_size <= SIZE_MOST:
            raise ConfigError(
                f"data.image_size is {self.image_size}; it must lie in 4 to {SIZE_MOST} pixels: "
                "leave it out to keep the dataset's own"
            )


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """What a dataset is."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    in_channels: int
    """1 for grey, 3 for colour, 2 for the polarities of events."""
    image_size: int
    """Side of the images as given out."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    crop: float = 1.0
    """As in `DataConfig`: image files are read so."""
    interpolation: str = "bilinear"
    """As in `DataConfig`."""
    num_steps: int | None = None
    """Frames of each recording, T; None where the data are images."""
