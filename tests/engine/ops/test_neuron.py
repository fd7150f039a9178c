"""The neuron: the reference against fractions and the float model, registers against both."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from tests.engine.ops.drawn import LEAKS, draw_integers, leak_array

from spikedriven.core.lif import lif
from spikedriven.core.simd import load_i32, store
from spikedriven.engine.ops.neuron.cpu import fire_16
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.plan import Neuron

DIGITS = 12
MOST = (1 << 30) - DIGITS
"""The largest currents that the compiler admits, less what rounding may add to a membrane."""
LANES = 16

values = st.integers(-MOST, MOST)
# 1/tau = 1, or any sum of different halves, quarters, ...
leaks = st.just((0,)) | st.sets(st.integers(1, DIGITS), min_size=1).map(sorted).map(tuple)


@njit
def fire_sixteen(i, v, theta, leak, bits):
    u = load_i32(v, 0)
    for t in range(bits.size):
        u, bits[t] = fire_16(load_i32(i.reshape(-1), t * 16), u, load_i32(theta, 0), leak)
    store(v, 0, u)


def in_registers(i, v, neuron):
    """Run the kernel's neuron as `fire` runs its own."""
    v, bits = v.astype(np.int32), np.zeros(len(i), np.uint64)
    fire_sixteen(
        i.astype(np.int32), v, neuron.theta.astype(np.int32), leak_array(neuron.leak), bits
    )
    return (bits[:, None] >> np.arange(LANES, dtype=np.uint64) & np.uint64(1)).astype(bool), v


def neuron_of(*theta, leak=(1,)):
    return Neuron(theta=np.array(theta, np.int32), leak=leak)


@settings(deadline=None, database=None)
@given(values, values, leaks)
def test_a_step_closes_its_share_of_the_gap_up_to_one_unit_per_digit(i, v, leak):
    silent = neuron_of(np.iinfo(np.int32).max, leak=leak)
    _, (u,) = fire(np.array([[i]]), np.array([v]), silent)
    exact = v + (i - v) * sum(Fraction(1, 2**places) for places in leak)
    assert 0 <= exact - int(u) < len(leak)


def test_with_whole_halves_the_neuron_is_the_float_models():
    steps = 4
    i = np.random.default_rng(0).integers(-8, 12, (steps, 200)) << steps
    theta = 3 << steps
    s, _ = fire(i, np.zeros(200, np.int64), neuron_of(*[theta] * 200))
    wanted = lif(torch.from_numpy(i / theta).double(), 0.5, 1.0)
    assert np.array_equal(s, wanted.numpy().astype(bool))
    assert 0 < s.mean() < 1


@pytest.mark.parametrize("run", [fire, in_registers], ids=["reference", "cpu"])
def test_a_tie_fires_and_a_spike_takes_the_membrane_to_zero(run):
    i = np.full((1, LANES), 10)
    s, v = run(i, np.zeros(LANES, np.int64), neuron_of(*[4, 5, 6, 7] * 4))
    assert s[0].tolist() == [True, True, False, False] * 4
    assert v.tolist() == [0, 0, 5, 5] * 4


@pytest.mark.parametrize("run", [fire, in_registers], ids=["reference", "cpu"])
def test_halves_are_rounded_down_on_both_sides_of_zero(run):
    i = np.array([[3, -3, 1, -1] * 4])
    _, v = run(i, np.zeros(LANES, np.int64), neuron_of(*[100] * LANES))
    assert v.tolist() == [1, -2, 0, -1] * 4


@settings(deadline=None, database=None)
@given(st.data())
def test_registers_compute_the_reference_at_any_magnitude(data):
    steps, leak = data.draw(st.integers(1, 5)), data.draw(leaks)
    row = st.lists(values, min_size=LANES, max_size=LANES)
    i = np.array(data.draw(st.lists(row, min_size=steps, max_size=steps)))
    v, theta = np.array(data.draw(row)), data.draw(row)
    neuron = neuron_of(*theta, leak=leak)
    for got, wanted in zip(in_registers(i, v, neuron), fire(i, v, neuron), strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize("leak", LEAKS, ids=str)
def test_registers_compute_the_reference_at_the_largest_magnitudes(leak):
    i, v = draw_integers(9, LANES, most=MOST), draw_integers(LANES, most=MOST, seed=1)
    neuron = neuron_of(*draw_integers(LANES, most=MOST, seed=2), leak=leak)
    (s, u), (wanted_s, wanted_u) = in_registers(i, v, neuron), fire(i, v, neuron)
    assert 0 < s.mean() < 1
    assert np.array_equal(s, wanted_s)
    assert np.array_equal(u, wanted_u)
