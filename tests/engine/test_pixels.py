"""The front door: bytes are found again in any float; what does not fit is refused in words."""

import numpy as np
import pytest
from tests.helpers.lively import some_images

from spikedriven.engine.pixels import read_pixels
from spikedriven.engine.plan import Input
from spikedriven.errors import ShapeError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RGB = Input(channels=3, stride=4, num_steps=4, mean=MEAN, std=STD)
BOUND = Input(channels=3, stride=4, num_steps=4, size=16, mean=MEAN, std=STD)


def normalised(x, dtype):
    mean, std = (np.array(c, dtype)[:, None, None] for c in (MEAN, STD))
    return ((x.astype(dtype) / dtype(255)) - mean) / std


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_byte_is_read_back_from_the_float_it_became(dtype):
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    got = read_pixels(RGB, normalised(x, dtype))
    assert got.dtype == np.uint8
    assert np.array_equal(got[0], x)


def test_still_images_stand_for_one_moment():
    x = some_images(2, 3, 8, 12)
    assert np.array_equal(read_pixels(RGB, x), x[None])


def test_frames_bring_time_to_the_front():
    x = some_images(2, 4, 3, 8, 12)
    got = read_pixels(RGB, x)
    assert got.shape == (4, 2, 3, 8, 12)
    assert got.flags.c_contiguous
    for t in range(4):
        assert np.array_equal(got[t], x[:, t])


def test_a_float_between_two_bytes_becomes_the_nearer():
    plain = Input(channels=1, stride=1, num_steps=1, mean=(0.0,), std=(1 / 255,))
    x = np.array([0.4, 0.6, 254.51, 255.4, -0.4]).reshape(1, 1, 1, 5)
    assert read_pixels(plain, x).ravel().tolist() == [0, 1, 255, 255, 0]


@pytest.mark.parametrize("level", [-0.6, 255.6])
def test_a_float_half_a_byte_beyond_the_range_is_refused(level):
    plain = Input(channels=1, stride=1, num_steps=1, mean=(0.0,), std=(1 / 255,))
    with pytest.raises(ShapeError, match="they must lie in 0 to 255"):
        read_pixels(plain, np.array([level, 7.0]).reshape(1, 1, 1, 2))


def test_an_images_own_memory_order_does_not_matter():
    x = some_images(2, 8, 12, 3).transpose(0, 3, 1, 2)
    got = read_pixels(RGB, x)
    assert np.array_equal(got[0], x)
    assert got.flags.c_contiguous


@pytest.mark.parametrize(
    ("wanted", "x", "message"),
    [
        (RGB, np.zeros((3, 8, 8), np.uint8), "it must be uint8 or real"),
        (RGB, np.zeros((1, 1, 4, 3, 8, 8), np.uint8), "it must be uint8 or real"),
        (RGB, np.zeros((1, 3, 8, 8), np.int64), "the input is int64"),
        (RGB, np.zeros((1, 3, 8, 8), np.bool_), "the input is bool"),
        (RGB, np.zeros((1, 1, 8, 8), np.uint8), "has 1 channels; this program takes 3"),
        (RGB, np.zeros((1, 3, 0, 8), np.uint8), "has an empty axis"),
        (RGB, np.zeros((1, 3, 3, 8, 8), np.uint8), "has T = 3 steps.*compiled for 4"),
        (BOUND, np.zeros((1, 3, 8, 8), np.uint8), "8 x 8; this program was compiled for 16 x 16"),
        (BOUND, np.zeros((1, 3, 16, 8), np.uint8), "16 x 8; this program was compiled for 16 x 16"),
        (RGB, np.zeros((1, 3, 10, 8), np.uint8), "10 x 8; both sides must be multiples of 4"),
        (RGB, np.zeros((1, 3, 8, 10), np.uint8), "8 x 10; both sides must be multiples of 4"),
        (RGB, np.full((1, 3, 8, 8), 9.0), "from 9 to 9; read back as bytes"),
        (RGB, np.full((1, 3, 8, 8), -9.0), "from -9 to -9; read back as bytes"),
        (RGB, np.full((1, 3, 8, 8), np.nan), "from nan to nan"),
        (RGB, np.full((1, 3, 8, 8), np.inf), "from inf to inf"),
    ],
    ids=[
        "no batch", "six axes", "integers", "booleans", "channels", "no rows", "steps",
        "size", "width", "height of the stride", "width of the stride", "too bright", "too dark",
        "NaN", "infinite",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(wanted, x, message):
    with pytest.raises(ShapeError, match=message) as raised:
        read_pixels(wanted, x)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_image_is_no_byte(dtype):
    assert read_pixels(RGB, np.zeros((0, 3, 8, 8), dtype)).shape == (1, 0, 3, 8, 8)
    assert read_pixels(RGB, np.zeros((0, 4, 3, 8, 8), dtype)).shape == (4, 0, 3, 8, 8)


def test_one_wrong_pixel_is_enough():
    x = normalised(some_images(1, 3, 8, 8), np.float64)
    read_pixels(RGB, x)
    x[0, 2, 7, 7] = np.nan
    with pytest.raises(ShapeError, match="nan"):
        read_pixels(RGB, x)
