"""From stored pixels to what the network sees: variation, size, normalisation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from spikedriven.data.config import AugmentConfig, DataInfo
from spikedriven.errors import ConfigError, DataError


def read_image(path: Path, info: DataInfo) -> Tensor:
    """Read an image file as the dataset's test images are: resized, centre-cropped, normalised.

    Args:
        path: Image in any format that Pillow reads.
        info: The dataset that the model was trained on.

    Returns:
        float32 [C, H, W].

    Raises:
        DataError: The file is missing or is no whole image.
    """
    return normalise(decode(path, info.in_channels, info.image_size), info)


def decode(path: Path, in_channels: int, size: int) -> Tensor:
    """Return uint8 [C, size, size]: the shorter side resized (bilinear), the middle cropped.

    Raises:
        DataError: The file is missing or is no whole image.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if in_channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} is not a readable image ({error}); it must be a whole image file: "
            "repair or remove it"
        ) from error
    if image.size != (size, size):
        scale = size / min(image.size)
        wide, high = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if in_channels == 1 else pixels.movedim(-1, 0).contiguous()


def normalise(pixels: Tensor, info: DataInfo) -> Tensor:
    """Return (pixels / 255 - mean) / std as float32, per channel; pixels are uint8 [C, H, W]."""
    mean = torch.tensor(info.mean).view(-1, 1, 1)
    std = torch.tensor(info.std).view(-1, 1, 1)
    return (pixels.float() / 255 - mean) / std


class Augment:
    """Varies uint8 images [C, H, W]; the same generator state gives the same variation.

    Args:
        config: What to vary.

    Raises:
        ConfigError: timm does not understand `rand_augment`.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.rand_augment = None
        if config.rand_augment is not None:
            from timm.data.auto_augment import rand_augment_transform

            try:
                self.rand_augment = rand_augment_transform(config.rand_augment, {})
            except (AssertionError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"rand_augment is {config.rand_augment!r}, which timm refuses ({error}); "
                    "it must be timm's notation: write for example rand-m9-n1-mstd0.4-inc1"
                ) from error

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a varied copy, drawing from `rng` only."""
        config = self.config
        if rng.random() < config.horizontal_flip:
            pixels = pixels.flip(-1)
        if config.crop_padding:
            pad = config.crop_padding
            down, right = rng.integers(0, 2 * pad + 1, 2)
            height, width = pixels.shape[-2:]
            pixels = F.pad(pixels, [pad] * 4)[:, down : down + height, right : right + width]
        if config.rotation or config.zoom:
            pixels = self._turned(pixels, rng)
        if self.rand_augment is not None:
            with seeded_globals(int(rng.integers(2**32))):
                varied = self.rand_augment(Image.fromarray(pixels.movedim(0, -1).numpy()))
            pixels = torch.from_numpy(np.array(varied)).movedim(-1, 0)
        return pixels.contiguous()

    def _turned(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        angle = np.deg2rad(rng.uniform(-self.config.rotation, self.config.rotation))
        scale = 1 / rng.uniform(1 - self.config.zoom, 1 + self.config.zoom)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        matrix = torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]], dtype=torch.float32)
        grid = F.affine_grid(matrix, [1, *pixels.shape], align_corners=False)
        turned = F.grid_sample(pixels[None].float(), grid, align_corners=False)
        return turned[0].round().to(torch.uint8)


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Seed the global generators that timm's transforms draw from, and put them back afterwards."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
