"""The last layer: sums instead of means, and one row of weights per spike."""

import numpy as np
import pytest
import torch
from tests.engine.ops.drawn import (
    CHANNELS,
    LEAKS,
    SIDES,
    STEPS,
    TOKENS,
    draw_integers,
    to_stream,
)

from spikedriven.core.lif import lif
from spikedriven.engine.bits import WORD, words_for
from spikedriven.engine.ops.readout import cpu
from spikedriven.engine.ops.readout.reference import readout, summed
from spikedriven.engine.plan import Neuron, ReadoutStep

ONE = 1 << 12


def step_of(channels, classes=7, leak=(1,)):
    return ReadoutStep(
        name="head_lif",
        neuron=Neuron(theta=np.full(channels, ONE // 8), leak=leak),
        weight=draw_integers(channels, classes, most=1 << 15, seed=1).astype(np.int32),
        bias=draw_integers(classes, most=1 << 25, seed=2).astype(np.int32),
        scale=2.0**-10,
    )


def test_the_reference_is_mean_then_neuron_then_linear():
    # 64 tokens and whole multiples of them: means and halves are exact in both.
    u = draw_integers(3, 2, 8, 8, 9, most=100) * 64 * 8
    step = step_of(9)
    scores, s, _ = readout(u, step, np.zeros((2, 9), np.int64))
    mean = torch.from_numpy(u).double().mean(dim=(2, 3))
    wanted = lif(mean / (ONE // 8), 0.5, 1.0)
    assert 0 < s.mean() < 1
    assert np.array_equal(s, wanted.numpy().astype(bool))
    linear = wanted @ torch.from_numpy(step.weight).double() + torch.from_numpy(step.bias)
    assert np.array_equal(scores, linear.numpy())


def test_a_sum_reaches_its_threshold_where_the_mean_does():
    neuron = summed(Neuron(theta=np.array([5, 1 << 29])), 196)
    assert neuron.theta.tolist() == [5 * 196, (1 << 29) * 196]


def assert_reads(u, step, v):
    """Run the three kernels as the engine does; compare sums, spikes, membranes, scores."""
    steps, images, height, width, channels = u.shape
    tokens, classes = height * width, len(step.bias)
    wanted_scores, wanted, after = readout(u, step, v)
    sums = np.full((images, 4, words_for(channels) * WORD), -1, np.int64)
    cpu.sum_tokens(to_stream(u), tokens, sums)
    total = u.sum(axis=(2, 3)).transpose(1, 0, 2)
    assert np.array_equal(sums[:, :steps, :channels], total)
    given, spikes = v.copy(), np.zeros((images, 4, channels), np.bool_)
    theta = summed(step.neuron, tokens).theta
    cpu.fire_sums(sums, theta, np.array(step.neuron.leak), given, spikes, steps)
    assert np.array_equal(spikes[:, :steps].transpose(1, 0, 2), wanted)
    assert np.array_equal(given, after)
    scores = np.zeros((4, images, classes), np.int64)
    cpu.add_classes(spikes, step.weight, step.bias, scores, steps)
    assert np.array_equal(scores[:steps], wanted_scores)
    assert not scores[steps:].any()
    return wanted


def test_sums_beyond_32_bits_are_added_up_exactly():
    u = np.full((2, 1, 3, 3, 5), (1 << 30) - 1)
    s = assert_reads(u, step_of(5), np.zeros((1, 5), np.int64))
    assert s.all()


@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
def test_any_number_of_tokens(sides):
    u = draw_integers(4, 3, *sides, 65, most=4 * ONE)
    assert_reads(u, step_of(65), np.zeros((3, 65), np.int64))


@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_any_channels_and_steps_with_carried_membranes(leak, steps, channels):
    u = draw_integers(steps, 2, 3, 3, channels, most=4 * ONE)
    v = draw_integers(2, channels, most=ONE // 8 * 9, seed=3)
    assert_reads(u, step_of(channels, leak=leak), v)
