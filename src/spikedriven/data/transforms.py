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

UNREADABLE = (
    OSError,
    UnidentifiedImageError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)
"""What Pillow raises for a file that is no whole image."""

# Deeper pixels Pillow would cut off at 255 without a word.
_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})


def decode(path: Path, in_channels: int, size: int) -> Tensor:
    """Return uint8 [C, size, size]: the shorter side resized, the middle cropped.

    Raises:
        DataError: The file is missing, is no whole image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as opened:
            deep = opened.mode not in _EIGHT_BIT
            image = opened.convert("L" if in_channels == 1 else "RGB")
    except UNREADABLE as error:
        raise DataError(
            f"{path} is not a readable image ({error}); it must be a whole image file: "
            "repair or remove it"
        ) from error
    if deep:
        raise DataError(
            f"{path} has pixels of mode {opened.mode}; they must have 8 bits a channel: "
            "convert the file"
        )
    array = torch.from_numpy(np.array(image))
    pixels = array[None] if in_channels == 1 else array.movedim(-1, 0)
    scale = size / min(image.size)
    high, wide = (max(size, round(side * scale)) for side in pixels.shape[1:])
    top, left = (high - size) // 2, (wide - size) // 2
    return resized(pixels[None], high, wide)[0, :, top : top + size, left : left + size]


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Return uint8 [N, C, height, width], by bilinear interpolation that averages when it shrinks.

    The one place where sizes change: files and stored arrays take the same way.
    """
    if images.shape[-2:] == (height, width):
        return images
    size = (height, width)
    parts = [
        F.interpolate(part.float(), size, mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for part in images.split(1000)  # a whole dataset as floats would not fit in memory
    ]
    return torch.cat(parts)


def normalise(pixels: Tensor, info: DataInfo) -> Tensor:
    """Return (pixels / 255 - mean) / std as float32, per channel.

    Args:
        pixels: uint8 [C, H, W], or [T, C, H, W] for frames, whose counts come back whole.
        info: Mean and deviation.
    """
    # In single precision a count divided by 255 and by 1 / 255 would no longer be whole.
    dtype = torch.float32 if info.num_steps is None else torch.float64
    mean = torch.tensor(info.mean, dtype=dtype).view(-1, 1, 1)
    std = torch.tensor(info.std, dtype=dtype).view(-1, 1, 1)
    return ((pixels.to(dtype) / 255 - mean) / std).float()


class Augment:
    """Varies uint8 images [C, H, W], or frames [T, C, H, W] that stay alike.

    The same generator state gives the same variation.

    Args:
        config: What to vary.
        info: The dataset, whose mean colour and size RandAugment takes.

    Raises:
        ConfigError: timm does not understand `rand_augment`.
    """

    def __init__(self, config: AugmentConfig, info: DataInfo) -> None:
        self.config = config
        self.rand_augment = None
        if config.rand_augment is not None:
            from timm.data.auto_augment import rand_augment_transform

            try:
                self.rand_augment = rand_augment_transform(config.rand_augment, _as_released(info))
            except (AssertionError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"rand_augment is {config.rand_augment!r}, which timm refuses ({error}); "
                    "it must be timm's notation: write for example rand-m9-n1-mstd0.4-inc1"
                ) from error
            for operation in self.rand_augment.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __call__(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Return a varied copy, drawing from `rng` only."""
        config = self.config
        if rng.random() < config.horizontal_flip:
            pixels = pixels.flip(-1)
        if config.crop_padding:
            pad = config.crop_padding
            down, right = rng.integers(0, 2 * pad + 1, 2)
            height, width = pixels.shape[-2:]
            pixels = F.pad(pixels, [pad] * 4)
            pixels = pixels[..., down : down + height, right : right + width]
        if config.rotation or config.zoom:
            pixels = self._turned(pixels, rng)
        if config.roll:
            down, right = rng.integers(-config.roll, config.roll + 1, 2)
            pixels = pixels.roll((int(down), int(right)), dims=(-2, -1))
        if config.cutout:
            pixels = self._cut_out(pixels, rng)
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
        flat = pixels.reshape(1, -1, *pixels.shape[-2:])  # frames as so many channels
        grid = F.affine_grid(matrix, list(flat.shape), align_corners=False)
        turned = F.grid_sample(flat.float(), grid, align_corners=False)
        return turned.view(pixels.shape).round().to(torch.uint8)

    def _cut_out(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Empty a square around a random pixel; at a border, the part of it that is inside.

        Source: DeVries & Taylor, 2017; the released code's `--dvs-aug` is one square of 16.
        """
        height, width = pixels.shape[-2:]
        row, column = int(rng.integers(height)), int(rng.integers(width))
        side = self.config.cutout
        top, left = row - side // 2, column - side // 2
        cut = pixels.clone()
        cut[..., max(top, 0) : top + side, max(left, 0) : left + side] = 0
        return cut


def _as_released(info: DataInfo) -> dict[str, object]:
    """Return timm's settings as its own training takes them: the released recipes' defaults."""
    return {
        "translate_const": int(info.image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in info.mean),
        "interpolation": Image.Resampling.BICUBIC,
    }


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the upper bits of every pixel; none of them leaves black.

    timm asks for none at full magnitude, which Pillow 13 refuses: now and then an image of the
    published CIFAR recipes would stop the training.
    """
    return image.point(lambda level: level & (0xFF << (8 - bits)) & 0xFF)


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
