"""Attention: the reference against the float model's, the kernels against the reference."""

import numpy as np
import pytest
import torch
from tests.engine.ops.drawn import (
    CHANNELS,
    GARBAGE,
    RATES,
    SIDES,
    STEPS,
    TOKENS,
    assert_words,
    draw_spikes,
    to_words,
)

from spikedriven.core.attention import spike_driven_attention
from spikedriven.engine.bits import WORD, unpack, words_for
from spikedriven.engine.ops.attend import cpu
from spikedriven.engine.ops.attend.reference import attend
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.plan import FRACTION, AttendStep, Neuron
from spikedriven.nn.neuron import LIF

GATE = 0.5
"""Threshold of the gate."""


def step_of(channels, gate=None):
    return AttendStep(
        name="masked", query="q", key="k", value="v", channels=channels, gate=gate,
        dilation_heads=None,
    )  # fmt: skip


def draw_three(*shape, rate=0.2):
    return [draw_spikes(*shape, rate=rate, seed=seed) for seed in (1, 2, 3)]


def at_rest(s):
    return np.zeros((s.shape[1], s.shape[-1]), np.int64)


def test_without_a_gates_neurons_it_is_the_float_models_attention_at_tau_two():
    q, k, v = draw_three(4, 3, 2, 5, 30)
    floats = [torch.from_numpy(np.moveaxis(s, -1, 2).astype(np.float64)) for s in (q, k, v)]
    wanted = spike_driven_attention(*floats, LIF(v_threshold=GATE))
    got, _ = attend(q, k, v, step_of(30), at_rest(q))
    assert 0 < got.sum() < q.sum()
    assert np.array_equal(got, np.moveaxis(wanted.numpy(), 2, -1).astype(bool))


def test_a_gates_neurons_fire_on_the_number_of_agreements():
    q, k, v = draw_three(4, 2, 3, 3, 20)
    gate = Neuron(theta=np.full(20, 1 << FRACTION >> 1), leak=(2,))  # 1/tau = 1/4
    counts = (k & v).sum(axis=(2, 3)) << FRACTION
    opened, after = fire(counts, at_rest(q), gate)
    got, state = attend(q, k, v, step_of(20, gate), at_rest(q))
    assert np.array_equal(got, q & opened[:, :, None, None])
    assert np.array_equal(state, after)
    assert not np.array_equal(got, attend(q, k, v, step_of(20), at_rest(q))[0])


def run_kernels(q, k, v):
    """Agree, then mask; and both at once, aside and in place: return the packed result of all."""
    words, tokens = to_words(q), q.shape[2] * q.shape[3]
    key, value = to_words(k), to_words(v)
    gate = np.full((q.shape[1], *words.shape[1:]), GARBAGE)
    cpu.agree(key, value, tokens, gate)
    out, at_once = np.full(words.shape, GARBAGE), np.full(words.shape, GARBAGE)
    cpu.mask(words, gate, tokens, out)
    cpu.attend(words, key, value, tokens, at_once)
    assert np.array_equal(at_once, out)
    cpu.attend(words, key, value, tokens, words)
    assert np.array_equal(words, out)
    return out


@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
def test_any_number_of_tokens_agrees_and_is_masked(sides):
    q, k, v = draw_three(4, 3, *sides, 65)
    assert_words(run_kernels(q, k, v), attend(q, k, v, step_of(65), at_rest(q))[0])


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
def test_any_channels_rate_and_number_of_steps(channels, rate, steps):
    q, k, v = draw_three(steps, 2, 3, 3, channels, rate=rate)
    assert_words(run_kernels(q, k, v), attend(q, k, v, step_of(channels), at_rest(q))[0])


@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
@pytest.mark.parametrize("rate", RATES)
def test_agreements_are_counted_over_the_tokens_of_each_image(sides, rate):
    _, k, v = draw_three(4, 3, *sides, 70, rate=rate)
    counts = np.full((3, 4, words_for(70) * WORD), -1)
    cpu.count_agreements(to_words(k), to_words(v), sides[0] * sides[1], counts)
    wanted = (k & v).sum(axis=(2, 3))
    assert np.array_equal(counts[..., :70], wanted.transpose(1, 0, 2))
    assert not counts[..., 70:].any()


def test_images_of_a_batch_open_only_their_own_gates():
    q = np.ones((4, 2, 2, 2, 3), np.bool_)
    k = np.zeros_like(q)
    k[1, 0, 1, 1, 2] = True  # one agreement, in the first image
    masked = unpack(run_kernels(q, k, k), 3)
    assert masked[:4, 1, 2].all()
    assert masked.sum() == 4
