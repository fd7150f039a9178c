"""Small images that live on the device as bytes: order, variation and batches without a copy.

An epoch's order is that of the loaders on a CPU (`EpochSampler`). Variation is drawn by hashing
(seed, epoch, index of the image, number of the draw), so it is the same on every device, for every
batch size, and after a resumption. What `AugmentConfig` asks for means the same as on a CPU, with
RandAugment's operations as functions of a batch, each image with its own strength.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spikedriven.data.config import AugmentConfig
from spikedriven.data.loaders import ALONE, ArrayDataset, EpochSampler, Place
from spikedriven.errors import ConfigError

# ------------------------------------------------------------------ drawing by hashing

# Odd constants of SplitMix64 (Steele, Lea & Flood 2014), as signed numbers: torch has no others.
_GAMMA, _MIX1, _MIX2 = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _MIX1
    x = (x ^ _shifted(x, 27)) * _MIX2
    return x ^ _shifted(x, 31)


def uniform(seed: int, epoch: int, index: Tensor, number: int) -> Tensor:
    """Return [B, number] float32 in [0, 1), a function of its arguments on every device.

    Args:
        seed: Seed of the variation.
        epoch: Epoch.
        index: int64 [B], the images' places in the dataset.
        number: Draws for each image.
    """
    word = _mixed(torch.full_like(index, seed) * _GAMMA + epoch)
    word = _mixed((word + index) * _GAMMA + 1)
    draws = torch.arange(number, device=index.device)
    bits = _shifted(_mixed(word[:, None] + (draws + 1) * _GAMMA), 40)  # as many as float32 holds
    return bits.float() / 2**24


# ------------------------------------------------------------------ variation
# x: float32 [B, C, H, W], whole numbers in [0, 255]; strength: [B, 1, 1, 1] in [0, 1], from the
# configured magnitude over 10; sign: the same shape, -1 or 1.


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _blended(x: Tensor, towards: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Move from another image through `x` or back, by up to 0.9, as timm's increasing levels do."""
    factor = (1 + sign * 0.9 * strength).clamp_min(0.1)
    return towards + (x - towards) * factor


def _contrast(x: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    return _blended(x, _grey(x).mean((2, 3), keepdim=True).round(), strength, sign)


def _smoothed(x: Tensor) -> Tensor:
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=x.device) / 13
    inner = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None]).view(
        *x.shape[:2], x.shape[2] - 2, x.shape[3] - 2
    )
    smooth = x.clone()  # the border stays, as in Pillow
    smooth[:, :, 1:-1, 1:-1] = inner
    return smooth


def _autocontrast(x: Tensor, _strength: Tensor, _sign: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    spread = (x - low) * (255 / (high - low).clamp_min(1))
    return torch.where(high > low, spread, x)


def _posterized(x: Tensor, strength: Tensor, _sign: Tensor) -> Tensor:
    dropped = 2 ** (4 + (4 * strength).floor())  # keeps 4 - int(4 strength) of 8 bits
    return (x / dropped).floor() * dropped


def _solarized(x: Tensor, strength: Tensor, _sign: Tensor) -> Tensor:
    return torch.where(x < 256 - (256 * strength).floor(), x, 255 - x)


def _lightened(x: Tensor, strength: Tensor, _sign: Tensor) -> Tensor:
    return torch.where(x < 128, (x + (110 * strength).floor()).clamp_max(255), x)


Operation = Callable[[Tensor, Tensor, Tensor], Tensor]
COLOURS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "invert": lambda x, _strength, _sign: 255 - x,
    "posterize": _posterized,
    "solarize": _solarized,
    "solarize_add": _lightened,
    "colour": lambda x, strength, sign: _blended(x, _grey(x).round(), strength, sign),
    "contrast": _contrast,
    "brightness": lambda x, strength, sign: _blended(x, torch.zeros_like(x), strength, sign),
    "sharpness": lambda x, strength, sign: _blended(x, _smoothed(x), strength, sign),
}
"""timm's increasing operations but Equalize, whose histograms would cost more than all others."""
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""What moves pixels: up to 30 degrees, 0.3, and 0.45 of the side."""


def recoloured(x: Tensor, chosen: Tensor, strength: Tensor, sign: Tensor) -> Tensor:
    """Apply to each image the operation of `COLOURS` of its number, int64 [B]; others stay."""
    out = x
    for number, operation in enumerate(COLOURS.values()):
        mask = (chosen == number).view(-1, 1, 1, 1)
        out = torch.where(mask, operation(x, strength, sign).clamp(0, 255).floor(), out)
    return out


def moved(x: Tensor, chosen: Tensor, strength: Tensor, sign: Tensor, fill: Tensor) -> Tensor:
    """Apply to each image the operation of `MOVES` of its number; `fill`: [C] shows behind it."""
    level = (strength * sign).view(-1)
    turn = torch.where(chosen == 0, level * torch.pi / 6, 0.0)
    shear_x, shear_y = (torch.where(chosen == n, level * 0.3, 0.0) for n in (1, 2))
    # Affine grids count from -1 to 1: a share of the side is twice as much.
    right, down = (torch.where(chosen == n, level * 0.9, 0.0) for n in (3, 4))
    cos, sin = turn.cos(), turn.sin()
    matrix = torch.stack(
        [torch.stack([cos, sin + shear_x, right], 1), torch.stack([shear_y - sin, cos, down], 1)], 1
    )
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    shown = F.grid_sample(x - fill.view(1, -1, 1, 1), grid, align_corners=False)
    is_moved = ((chosen >= 0) & (chosen < len(MOVES))).view(-1, 1, 1, 1)
    return torch.where(is_moved, (shown + fill.view(1, -1, 1, 1)).round().clamp(0, 255), x)


def shifted(x: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    """Cut each image out of itself with a black border: `down` and `right` in [0, 2 padding]."""
    _, channels, height, width = x.shape
    padded = F.pad(x, [padding] * 4)
    rows = down[:, None] + torch.arange(height, device=x.device)
    columns = right[:, None] + torch.arange(width, device=x.device)
    images = torch.arange(len(x), device=x.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    return padded[images, planes, rows[:, None, :, None], columns[:, None, None, :]]


# ------------------------------------------------------------------ the loader


_ON_A_CPU = ("rotation", "zoom", "roll", "cutout", "crop_scale")


def check_resident(dataset: ArrayDataset) -> tuple[AugmentConfig, "_RandAugment"]:
    """Return how a dataset is varied on a device, once it can be.

    Raises:
        ConfigError: As `ResidentLoader`.
    """
    if not isinstance(dataset.images, Tensor):
        raise ConfigError(
            f"data.resident is set and the images of {dataset.info.name} are files; they must "
            "be held as bytes: remove it"
        )
    if dataset.info.num_steps is not None:
        raise ConfigError(
            f"data.resident is set and {dataset.info.name} holds recordings of events, which "
            "are varied on a CPU; they must be images: remove it"
        )
    config = dataset.augment.config if dataset.augment is not None else AugmentConfig()
    drawn = [name for name in _ON_A_CPU if getattr(config, name)]
    if drawn:
        raise ConfigError(
            f"data.resident is set with {drawn[0]}, which is drawn on a CPU; it must be left "
            f"out there: remove data.augment.{drawn[0]} or data.resident"
        )
    return config, _rand_augment(config.rand_augment)


class ResidentLoader:
    """Gives out every image of a dataset once an epoch, varied, from the memory of a device.

    Args:
        dataset: Images held as bytes; its variation is used.
        batch_size: Images per batch; the last batch is partial.
        device: Where the images lie, and are given out.
        seed: Seed of the order and of the variation.
        place: Which of several training processes this is; each gives out its part.

    Raises:
        ConfigError: The images are files or recordings of events, or a variation is asked for that
            only a CPU has.
    """

    def __init__(
        self,
        dataset: ArrayDataset,
        *,
        batch_size: int,
        device: torch.device | str,
        seed: int = 0,
        place: Place = ALONE,
    ) -> None:
        self.config, self.rand_augment = check_resident(dataset)
        self.seed, self.batch_size = seed, batch_size
        assert isinstance(dataset.images, Tensor)
        self.images = dataset.images.to(device)
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.sampler = EpochSampler(len(dataset), seed, batch_size, place)
        self._given = 0
        self.mean, self.std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1)
            for values in (dataset.info.mean, dataset.info.std)
        )

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = [index for _, index in self.sampler]
        # To the device once an epoch, not once a batch.
        index = torch.tensor(order, dtype=torch.int64).to(self.images.device)
        self._given = self.sampler.first
        for begin in range(0, len(order), self.batch_size):
            part = index[begin : begin + self.batch_size]
            self._given += 1
            x = self.varied(self.images[part].float(), part, self.sampler.epoch)
            yield (x / 255 - self.mean) / self.std, self.labels[part]

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches were given out."""
        return {"epoch": self.sampler.epoch, "batch": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue there, as `TrainingLoader` does."""
        self.sampler.begin_at(state["epoch"], state["batch"])

    def varied(self, x: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Return a varied copy of images [B, C, H, W] in [0, 255], whole numbers."""
        config = self.config
        random = self.rand_augment
        draws = uniform(self.seed, epoch, index, 3 + 5 * random.operations)
        if config.horizontal_flip:
            x = torch.where((draws[:, 0] < config.horizontal_flip).view(-1, 1, 1, 1), x.flip(-1), x)
        if config.crop_padding:
            reach = 2 * config.crop_padding + 1
            down, right = ((draws[:, n] * reach).long() for n in (1, 2))
            x = shifted(x, down, right, config.crop_padding)
        for n in range(random.operations):
            a, b, c, d, e = draws[:, 3 + 5 * n : 8 + 5 * n].unbind(1)
            number = (a * (len(COLOURS) + len(MOVES))).long()
            number = torch.where(b < 0.5, number, -1)  # each operation happens half of the time
            # Box and Muller: a normal from two uniforms
            normal = (-2 * (1 - c).log()).sqrt() * (2 * torch.pi * d).cos()
            level = (random.magnitude + random.deviation * normal).clamp(0, 10) / 10
            strength = level.view(-1, 1, 1, 1)
            sign = torch.where(e < 0.5, -1.0, 1.0).view(-1, 1, 1, 1)
            fill = (self.mean * 255).round().view(-1)
            x = recoloured(x, number, strength, sign)
            x = moved(x, number - len(COLOURS), strength, sign, fill)
        return x


@dataclass(frozen=True, slots=True)
class _RandAugment:
    operations: int
    magnitude: float
    deviation: float


def _rand_augment(notation: str | None) -> _RandAugment:
    """Read timm's notation, e.g. `rand-m9-n1-mstd0.4-inc1`."""
    if notation is None:
        return _RandAugment(0, 0.0, 0.0)
    parts = notation.split("-")[1:]
    given = {"m": 10.0, "n": 2.0, "mstd": 0.0}
    for part in parts:
        key = part.rstrip("0123456789.")
        if key in given:
            given[key] = float(part.removeprefix(key))
    if "inc1" not in parts or "inc0" in parts or "-mmax" in notation:
        raise ConfigError(
            f"data.resident is set and rand_augment is {notation!r}; on the device operations "
            "must increase up to magnitude 10: write for example rand-m9-n1-mstd0.4-inc1"
        )
    return _RandAugment(int(given["n"]), given["m"], given["mstd"])
