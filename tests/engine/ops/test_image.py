"""The first layer: the reference against torch's convolution, the kernel against the reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.engine.ops.drawn import (
    CHANNELS,
    LEAKS,
    SIDES,
    TOKENS,
    assert_words,
    draw_integers,
    leak_array,
)
from tests.helpers.lively import some_images

from spikedriven.engine.bits import words_for
from spikedriven.engine.ops.image import cpu
from spikedriven.engine.ops.image.reference import image_current
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.ops.synapse.cpu import NEVER
from spikedriven.engine.plan import ImageStep, Neuron

INT16_SUM = 32767
"""What the weights of all taps of a pixel may add up to."""


def step_of(channels, outputs, leak=(1,), most=None):
    most = INT16_SUM // (9 * channels) if most is None else most
    weight = draw_integers(3, 3, channels, outputs, most=most, seed=1).astype(np.int16)
    unit = 255 * most
    return ImageStep(
        name="stem.image",
        weight=weight,
        bias=draw_integers(16, outputs, most=unit, seed=2).astype(np.int32),
        neuron=Neuron(theta=np.full(outputs, unit, np.int32), leak=leak),
    )


def draw_pixels(moments, images, height, width, channels):
    return some_images(moments, images, height, width, channels)


def assert_fires(x, step, steps, v=None):
    """Run the kernel on pixels [S, B, H, W, c]; compare spikes and membranes."""
    moments, images, height, width, channels = x.shape
    i = image_current(x, step)
    i = np.broadcast_to(i, (steps, *i.shape[1:]))
    wanted, after = fire(i, np.zeros_like(i[0]) if v is None else v, step.neuron)

    table, outputs = cpu.lay_out(step.weight), step.weight.shape[-1]
    bias = np.zeros((16, table.shape[2]), np.int32)
    theta = np.full(table.shape[2], NEVER, np.int32)
    bias[:, :outputs], theta[:outputs] = step.bias, step.neuron.theta
    planes = np.ascontiguousarray(np.moveaxis(x, -1, 2)).reshape(-1, channels, height, width)
    offsets = np.full((moments * images, channels, height + 2, 8, width), 77, np.uint16)
    cpu.plane_offsets(planes, table.shape[2], offsets)
    sites, groups = images * height * width, -(-steps // 4)
    words = np.zeros((groups, sites, 4, words_for(outputs)), np.uint64)
    given = None
    if v is not None:
        given = np.zeros((sites, table.shape[2]), np.int32)
        given[:, :outputs] = v.reshape(sites, outputs)
    cpu.fire_image(
        offsets, table, bias, theta, leak_array(step.neuron.leak), given, v is not None, images,
        steps, words.view(np.uint32),
    )  # fmt: skip

    for group in range(groups):
        assert_words(words[group], wanted[4 * group : 4 * group + 4])
    if v is not None:
        assert np.array_equal(given[:, :outputs], after.reshape(sites, outputs))
    return wanted


def test_the_current_is_torchs_convolution_of_bytes_plus_the_borders_bias():
    x, step = draw_pixels(1, 2, 4, 5, 3), step_of(3, 7)
    images = torch.from_numpy(x[0]).permute(0, 3, 1, 2).double()
    kernels = torch.from_numpy(step.weight.astype(np.float64)).permute(3, 2, 0, 1)
    got = image_current(x, step)[0] - F.conv2d(images, kernels, padding=1).permute(
        0, 2, 3, 1
    ).numpy().astype(np.int64)
    for y in range(4):
        for x_ in range(5):
            edge = (y == 0) + 2 * (y == 3) + 4 * (x_ == 0) + 8 * (x_ == 4)
            assert (got[:, y, x_] == step.bias[edge]).all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
def test_images_of_any_size(sides):
    s = assert_fires(draw_pixels(1, 2, *sides, 3), step_of(3, 40), 4)
    assert 0 < s.mean() < 1


@pytest.mark.parametrize("outputs", [*CHANNELS, 96, 200])
@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels, outputs):
    assert_fires(draw_pixels(1, 1, 3, 4, channels), step_of(channels, outputs), 4)


@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("moving", [False, True], ids=["still", "moving"])
def test_any_number_of_steps_of_stills_and_of_frames(leak, steps, moving):
    x = draw_pixels(steps if moving else 1, 2, 3, 5, 2)
    s = assert_fires(x, step_of(2, 33, leak), steps)
    assert s.any()


@pytest.mark.parametrize("leak", LEAKS, ids=str)
def test_carried_membranes_are_taken_up_and_written_back(leak):
    v = draw_integers(2, 3, 5, 33, most=255 * 400, seed=3)
    assert_fires(draw_pixels(1, 2, 3, 5, 2), step_of(2, 33, leak), 1, v)


@pytest.mark.parametrize("sign", [-1, 1])
def test_white_pixels_under_the_largest_weights_add_up_exactly(sign):
    step = step_of(1, 32, most=INT16_SUM // 9)
    step.weight[...] = sign * (INT16_SUM // 9)
    v = np.zeros((1, 3, 3, 32), np.int64)
    assert_fires(np.full((1, 1, 3, 3, 1), 255, np.uint8), step, 1, v)


def test_a_table_holds_the_sums_of_three_neighbouring_weights():
    weight = step_of(2, 5).weight.astype(np.int64)
    table = cpu.lay_out(weight.astype(np.int16)).reshape(2, 3, 8, -1)
    for c in range(2):
        for row in range(3):
            for pattern in range(8):
                wanted = sum(weight[row, dx, c] * (pattern >> dx & 1) for dx in range(3))
                assert np.array_equal(table[c, row, pattern, :5], wanted + np.zeros(5, np.int64))
