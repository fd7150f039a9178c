"""The engine's front door: images and event frames as bytes, or a sentence that says why not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.plan import Input
from spikedriven.errors import ShapeError


def read_pixels(wanted: Input, x: NDArray[Any]) -> NDArray[np.uint8]:
    """Check an input and return it as bytes.

    Args:
        wanted: What the program takes.
        x: Images [B, c, H, W] or event frames [B, T, c, H, W]; B may be 0. uint8, or real numbers
            as the float model takes them, (byte / 255 - mean) / std: they are rounded to the
            nearest byte.

    Returns:
        uint8 [S, B, c, H, W], S = T, or S = 1 for images that stay the same at every step.

    Raises:
        ShapeError: Rank, type, size, T or the range of values is wrong.
    """
    x = np.asarray(x)
    shape = x.shape
    is_real = np.issubdtype(x.dtype, np.floating)
    if x.ndim not in (4, 5) or not (x.dtype == np.uint8 or is_real):
        raise ShapeError(
            f"the input is {x.dtype} {shape}; it must be uint8 or real, [B, C, H, W] or "
            "[B, T, C, H, W]: add the missing axes or convert it"
        )
    *_, channels, height, width = shape
    if channels != wanted.channels:
        raise ShapeError(
            f"the input {shape} has {channels} channels; this program takes {wanted.channels}: "
            "convert the images"
        )
    if 0 in shape[1:]:
        raise ShapeError(
            f"the input {shape} has an empty axis; T, C, H and W must be at least 1: "
            "drop empty samples"
        )
    if x.ndim == 5 and shape[1] != wanted.num_steps:
        raise ShapeError(
            f"the input {shape} has T = {shape[1]} steps; this program was compiled for "
            f"{wanted.num_steps}: cut the frames so, or compile it with num_steps={shape[1]}"
        )
    if wanted.size is not None and (height, width) != (wanted.size, wanted.size):
        raise ShapeError(
            f"the image is {height} x {width}; this program was compiled for "
            f"{wanted.size} x {wanted.size}: resize it"
        )
    if height % wanted.stride or width % wanted.stride:
        raise ShapeError(
            f"the image is {height} x {width}; both sides must be multiples of {wanted.stride}: "
            "resize or crop it"
        )
    if is_real:
        x = _as_bytes(wanted, x)
    return np.ascontiguousarray(x[None] if x.ndim == 4 else x.swapaxes(0, 1))


def _as_bytes(wanted: Input, x: NDArray[Any]) -> NDArray[np.uint8]:
    mean = np.asarray(wanted.mean, np.float64)[:, None, None]
    std = np.asarray(wanted.std, np.float64)[:, None, None]
    with np.errstate(over="ignore", invalid="ignore"):  # judged below
        levels = np.rint((x * std + mean) * 255)
    if x.size and not (np.isfinite(x).all() and levels.min() >= 0 and levels.max() <= 255):
        raise ShapeError(
            f"the input holds values from {x.min():.4g} to {x.max():.4g}; read back as bytes with "
            f"mean {wanted.mean} and std {wanted.std} they must lie in 0 to 255: "
            "normalise as the program was compiled, or pass uint8"
        )
    return levels.astype(np.uint8)
