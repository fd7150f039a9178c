"""From stored pixels to what the network sees: variation, size, normalisation."""

import io
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import IO, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from spikedriven.data.config import AugmentConfig, DataInfo
from spikedriven.errors import ConfigError, DataError

UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, RuntimeError)
"""What Pillow raises for a file that is no whole image."""

LOOKED = 60.0
"""Seconds for which files are decoded to count the damaged ones, once one was met."""

LONGEST = 100
"""How many times as long as wide an image may be: of a longer one the middle that is kept shows
less than a hundredth, and resized whole it would fill the memory."""


class ImageFile(Protocol):
    """An image file, by itself (a `Path`) or inside a larger one; as text, what a person reads."""

    @property
    def name(self) -> str:
        """What it is called in its folder or in the larger file."""

    def read_bytes(self) -> bytes:
        """Return its content."""


Part = tuple[Tensor | Sequence[ImageFile], NDArray[np.int64]]
"""Images and labels of a train, validation or test part."""

# Deeper pixels Pillow would cut off at 255 without a word.
_EIGHT_BIT = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"})


@contextmanager
def opened(path: ImageFile, stream: IO[bytes] | None = None) -> Iterator[Image.Image]:
    """Open an image file, of which only the header is read, and checked, so far.

    Args:
        path: The file.
        stream: Its content where that is at hand already.

    Raises:
        DataError: As in `open_image`, there or inside the block.
    """
    try:
        # Of what is no file reading might never end.
        if isinstance(path, Path) and not path.is_file():
            raise DataError(
                f"{path} is {'no file' if path.exists() else 'missing'}; it must be an image file: "
                "check the path"
            )
        source = path if isinstance(path, Path) else stream or io.BytesIO(path.read_bytes())
        # What Pillow only remarks, of a photo's EXIF or a palette, leaves the pixels whole; but not
        # what it misses of a TIFF, or that there are more pixels than it deems safe.
        with (
            warnings.catch_warnings(record=True, action="always") as remarks,
            Image.open(source) as image,
        ):
            if any(issubclass(said.category, Image.DecompressionBombWarning) for said in remarks):
                raise Image.DecompressionBombError
            foreign = ("Metadata Warning" in str(said.message) for said in remarks)
            if image.format == "TIFF" and not all(foreign):
                raise OSError("its tags are cut off")
            if image.mode not in _EIGHT_BIT:
                raise DataError(
                    f"{path} has pixels of mode {image.mode}; they must have 8 bits a channel: "
                    "convert the file"
                )
            if max(image.size) > LONGEST * min(image.size):
                raise DataError(
                    f"{path} is {image.height} x {image.width} pixels; one side must be at most "
                    f"{LONGEST} times the other: crop it"
                )
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} has too many pixels; it must have at most {Image.MAX_IMAGE_PIXELS:,}: "
            "shrink or remove it"
        ) from error
    except UNREADABLE as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "in no format that Pillow knows" if unknown else error
        raise DataError(
            f"{path} is not a readable image ({reason}); it must be a whole image file: "
            "repair or remove it"
        ) from error


def check_headers(files: Iterable[tuple[ImageFile, IO[bytes] | None]]) -> None:
    """Open every file, with its content where that is at hand, as far as its header.

    Raises:
        DataError: Some cannot be used; all of them are counted, the first is named.
    """
    refused, number = [], 0
    for number, (file, stream) in enumerate(files, 1):  # noqa: B007 - counted to the end
        try:
            with opened(file, stream):
                pass
        except DataError as error:
            refused.append(error)
    if refused:
        raise DataError(f"{len(refused)} of {number} images cannot be used; {refused[0]}")


def counted_damage(files: Sequence[ImageFile], met: DataError) -> DataError:
    """Return what to raise where a file with a good header could not be decoded.

    All files are decoded, to count those that cannot be and to name the first; where that would
    take longer than `LOOKED`, the count is what was found until then.
    """
    begin, refused, at_least = monotonic(), [], ""
    for file in files:
        try:
            open_image(file, in_channels=3)
        except DataError as error:
            refused.append(error)
        if monotonic() - begin > LOOKED:
            at_least = "at least "
            break
    refused = refused or [met]
    return DataError(
        f"{at_least}{len(refused)} of {len(files)} images cannot be used; {refused[0]}"
    )


def open_image(path: ImageFile, in_channels: int) -> Image.Image:
    """Return an image file, whole, in grey or in colour.

    Raises:
        DataError: The file is missing, is no whole image, has more than 8 bits a channel, or is
            more than `LONGEST` times as long as wide.
    """
    with opened(path) as image:
        return image.convert("L" if in_channels == 1 else "RGB")


def pixels_of(image: Image.Image) -> Tensor:
    """Return uint8 [C, H, W]."""
    array = torch.from_numpy(np.array(image))
    return array[None] if array.ndim == 2 else array.movedim(-1, 0)


def image_of(pixels: Tensor) -> Image.Image:
    """Return the image of uint8 [C, H, W], grey or colour."""
    array = pixels.movedim(0, -1).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def decode(
    path: ImageFile,
    in_channels: int,
    size: int,
    crop: float = 1.0,
    interpolation: str = "bilinear",
) -> Tensor:
    """Return uint8 [C, size, size]: the shorter side resized to size / crop, the middle cropped.

    Raises:
        DataError: As in `open_image`.
    """
    pixels = pixels_of(open_image(path, in_channels))
    shorter = int(size / crop)
    # Rounded as torchvision and timm do, so that published weights see the images they know.
    high, wide = (shorter * side // min(pixels.shape[1:]) for side in pixels.shape[1:])
    top, left = round((high - size) / 2), round((wide - size) / 2)
    whole = resized(pixels[None], high, wide, interpolation)[0]
    return whole[:, top : top + size, left : left + size]


def resized(images: Tensor, height: int, width: int, interpolation: str = "bilinear") -> Tensor:
    """Return uint8 [N, C, height, width], by interpolation that averages when it shrinks.

    The one place where sizes change: files and stored arrays take the same way.
    """
    if images.shape[-2:] == (height, width):
        return images
    size = (height, width)
    parts = [
        F.interpolate(part.float(), size, mode=interpolation, antialias=True)
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
        self.random_crop = None
        if config.crop_scale is not None:
            from timm.data.transforms import RandomResizedCropAndInterpolation

            self.random_crop = RandomResizedCropAndInterpolation(  # type: ignore[no-untyped-call]
                info.image_size,
                scale=(config.crop_scale, 1.0),
                interpolation=info.interpolation,
            )
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

    def cropped(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """Return a random crop of a whole image, uint8 [C, size, size], drawing from `rng` only."""
        assert self.random_crop is not None
        with seeded_globals(int(rng.integers(2**32))):
            return pixels_of(self.random_crop(image))

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
                pixels = pixels_of(self.rand_augment(image_of(pixels)))
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
