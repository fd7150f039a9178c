"""Pooling and dilation: the reference against torch's maxima, the kernels against the reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.engine.ops.drawn import (
    CHANNELS,
    GARBAGE,
    LEAKS,
    RATES,
    SIDES,
    STEPS,
    TOKENS,
    assert_words,
    draw_integers,
    draw_spikes,
    from_stream,
    leak_array,
    to_rows,
    to_stream,
    to_words,
)

from spikedriven.core import attention
from spikedriven.engine.bits import WORD, pack, words_for
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.ops.pool import cpu
from spikedriven.engine.ops.pool.reference import dilate_tokens, pool
from spikedriven.engine.ops.synapse.cpu import NEVER, padded_to_words
from spikedriven.engine.plan import Neuron

HALVES = [(2, 2), (2, 8), (4, 6), (8, 8), (10, 14), (2, 64), (14, 14)]


def images_of(x):
    """Return [T, B, H, W, C] as torch's [T * B, C, H, W]."""
    array = np.moveaxis(x, -1, 2).astype(np.float64)
    return torch.from_numpy(array.reshape(-1, *array.shape[2:]))


def like_images(pooled, shape):
    return np.moveaxis(pooled.numpy().reshape(*shape[:2], *pooled.shape[1:]), 2, -1)


@pytest.mark.parametrize("stride", [1, 2])
def test_pooling_is_torchs_maximum_of_spikes_and_of_membranes(stride):
    s, u = draw_spikes(2, 3, 4, 6, 5), draw_integers(2, 3, 4, 6, 5, most=99) - 200
    for x in (s, u):  # membranes far below zero: nothing beyond the border may win
        wanted = F.max_pool2d(images_of(x), 3, stride=stride, padding=1)
        assert np.array_equal(pool(x, stride=stride), like_images(wanted, x.shape))


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_tokens_are_dilated_as_the_float_model_dilates_them(heads):
    s = draw_spikes(2, 3, 4, 5, 12, rate=0.1)
    x = torch.from_numpy(np.moveaxis(s, -1, 2).astype(np.float32))
    wanted = np.moveaxis(attention.dilate_tokens(x, heads).numpy(), 2, -1)
    assert np.array_equal(dilate_tokens(s, heads), wanted)


# ------------------------------------------------------------------ packed spikes


def assert_pools(s, stride):
    words = to_words(s)
    out = np.full((len(words) // stride**2, *words.shape[1:]), GARBAGE)
    cpu.pool_spikes(words, *s.shape[2:4], stride, out)
    assert_words(out, pool(s, stride=stride))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
def test_any_number_of_tokens_is_dilated(sides):
    assert_pools(draw_spikes(4, 2, *sides, 65, rate=0.1), 1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sides", HALVES, ids=str)
def test_any_even_sides_are_halved(sides):
    assert_pools(draw_spikes(4, 2, *sides, 65, rate=0.1), 2)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("stride", [1, 2])
def test_any_rate_and_number_of_steps_is_pooled(rate, steps, stride):
    assert_pools(draw_spikes(steps, 1, 6, 4, 3, rate=rate), stride)


# ------------------------------------------------------------------ membranes


def assert_pools_membranes(current, theta, leak, v=None):
    """Pool, begin the stream and fire; compare stream, spikes and membranes."""
    steps, images, height, width, channels = current.shape
    neuron = Neuron(theta=theta, leak=leak)
    u = pool(current)
    wanted, after = fire(u, np.zeros_like(u[0]) if v is None else v, neuron)
    sites, panels = images * height * width // 4, words_for(channels)
    stream = np.full((panels, sites, 4, WORD), -1, np.int32)
    words = np.full((sites, 4, panels), GARBAGE)
    given = None if v is None else to_rows(v[None])[:, 0].copy()
    cpu.pool_membranes(
        to_stream(current), height, width, stream, padded_to_words(theta, NEVER), leak_array(leak),
        given, v is not None, words, steps,
    )  # fmt: skip
    pooled = from_stream(stream)
    assert np.array_equal(pooled[:, :steps, :channels], to_rows(u)[:, :steps, :channels])
    assert_words(words, wanted)
    if v is not None:
        assert np.array_equal(given[:, :channels], to_rows(after[None])[:, 0, :channels])
    return wanted


@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("carried", [False, True])
def test_pooled_membranes_begin_the_stream_and_fire(leak, steps, carried):
    current = draw_integers(steps, 2, 6, 4, 70, most=1000) - 600
    v = draw_integers(2, 3, 2, 70, most=300, seed=1) if carried else None
    s = assert_pools_membranes(current, draw_integers(70, most=300, seed=2), leak, v)
    assert 0 < s.mean() < 1


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("sides", HALVES, ids=str)
def test_membranes_of_any_even_sides_are_pooled(sides):
    current = draw_integers(4, 2, *sides, 65, most=1 << 29)
    assert_pools_membranes(current, np.full(65, 1 << 27), (1,))


@pytest.mark.parametrize("channels", CHANNELS)
def test_membranes_of_any_number_of_channels_are_pooled(channels):
    current = draw_integers(4, 1, 4, 4, channels, most=1000) - 600
    assert_pools_membranes(current, np.full(channels, 100), (1,))


# ------------------------------------------------------------------ dilation over tokens


@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
@pytest.mark.parametrize(("channels", "heads"), [(130, 2), (64, 1), (66, 33), (40, 5), (100, 100)])
def test_tokens_and_channels_dilated_in_turn_are_the_reference(sides, channels, heads):
    s = draw_spikes(4, 2, *sides, channels, rate=0.05)
    words = to_words(s)
    out = np.full(words.shape, GARBAGE)
    cpu.dilate_tokens(words, sides[0] * sides[1], out)
    place = np.arange(channels) % (channels // heads)
    first, last = pack(place == 0), pack(place == channels // heads - 1)
    cpu.dilate_channels(out.reshape(-1, out.shape[-1]), first, last)
    assert_words(out, dilate_tokens(s, heads))
