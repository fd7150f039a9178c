"""Every kernel equals its reference on whatever hypothesis draws: sizes, rates, numbers, leaks.

The neuron's own property stands in `test_neuron.py`; here layers run as a whole, through the
comparisons of the files beside this one.
"""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.ops import test_attend as attending
from tests.engine.ops import test_events as listing
from tests.engine.ops import test_image as imaging
from tests.engine.ops import test_pool as pooling
from tests.engine.ops import test_readout as reading
from tests.engine.ops import test_synapse as adding
from tests.engine.ops.drawn import assert_words, draw_integers, draw_spikes
from tests.helpers.lively import some_images

from spikedriven.engine.ops.attend.reference import attend
from spikedriven.engine.plan import Neuron

# Small sizes: what is rare is a combination, and a small one is found sooner and read better.
quick = settings(deadline=None, database=None, max_examples=40)

SAFE = 1 << 29
"""Bound of drawn currents and membranes: two of them and their rounding fit into 32 bits."""

seeds = st.integers(0, 2**32 - 1)
sides = st.integers(1, 6)
channels = st.integers(1, 140)
steps = st.integers(1, 4)
rates = st.floats(0, 1)
leaks = st.just((0,)) | st.sets(st.integers(1, 12), min_size=1).map(sorted).map(tuple)


@st.composite
def spikes(draw, *, factor=1, most_channels=140):
    """Draw [T, B, H, W, C] with sides that are multiples of `factor`."""
    shape = (
        draw(steps),
        draw(st.integers(1, 3)),
        factor * draw(sides),
        factor * draw(sides),
        draw(st.integers(1, most_channels)),
    )
    return draw_spikes(*shape, rate=draw(rates), seed=draw(seeds))


@st.composite
def whole_numbers(draw, *shape, most=SAFE):
    """Draw numbers up to a bound that is drawn, too."""
    return draw_integers(*shape, most=draw(st.integers(0, most)), seed=draw(seeds))


@st.composite
def neurons(draw, count, most=SAFE):
    """Draw neurons with thresholds of their own."""
    theta = 1 + np.abs(draw(whole_numbers(count, most=most)))
    return Neuron(theta=theta.astype(np.int32), leak=draw(leaks))


@st.composite
def layers(draw):
    """Draw spikes, and weights that they may meet, as the compiler bounds them."""
    s = draw(spikes(most_channels=70))
    outputs, kernel = draw(channels), draw(st.sampled_from([1, 3]))
    width = draw(st.sampled_from(adding.WIDTHS))
    weight = draw_integers(
        kernel, kernel, s.shape[-1], outputs,
        most=draw(st.integers(0, adding.MOST[width])), seed=draw(seeds),
    )  # fmt: skip
    while width == "int8" and np.abs(weight).sum(axis=(0, 1, 2)).max() > 32767:
        weight = np.trunc(weight * 0.9).astype(np.int64)
    return s, weight.astype(width)


def places_left(weight):
    """Return by how many places the largest sum of some weights may be shifted."""
    worst = int(np.abs(weight.astype(np.int64)).sum(axis=(0, 1, 2)).max())
    return (SAFE - 1).bit_length() - worst.bit_length() - 1


# ------------------------------------------------------------------ the kernels


@quick
@given(spikes(), st.sampled_from([1, 3]), st.sampled_from(sorted(listing.BUILDERS)))
def test_lists_name_what_every_pixel_sees(s, kernel, builder):
    listing.assert_lists(s, kernel, builder)


@quick
@given(st.data())
def test_layers_that_fire_are_their_reference(data):
    s, weight = data.draw(layers())
    outputs = weight.shape[-1]
    step = replace(
        adding.fire_step(weight),
        up=data.draw(st.integers(0, min(12, places_left(weight)))),
        bias=data.draw(whole_numbers(outputs, most=SAFE // 2)).astype(np.int32),
        neuron=data.draw(neurons(outputs)),
    )
    v = data.draw(st.none() | whole_numbers(*s.shape[1:4], outputs))
    adding.assert_fires(s, step, v)


@quick
@given(st.data())
def test_layers_that_feed_the_stream_are_their_reference(data):
    s, weight = data.draw(layers())
    outputs = weight.shape[-1]
    # A gain is below 8 << e.
    most = min(15, places_left(weight) - 3)
    exponents = data.draw(st.lists(st.integers(0, most), min_size=1, max_size=9))
    gain = [m << e for e in exponents for m in (4, 5, 6, 7)]
    step = replace(
        adding.stream_step(weight, begins=data.draw(st.booleans())),
        gain=np.resize(np.array(gain, np.int32), outputs),
        down=data.draw(st.integers(0, 16)),
        bias=data.draw(whole_numbers(outputs, most=SAFE // 2)).astype(np.int32),
        neuron=data.draw(st.none() | neurons(outputs)),
    )
    v = None
    if step.neuron is not None:
        v = data.draw(st.none() | whole_numbers(*s.shape[1:4], outputs))
    adding.assert_streams(s, step, v)


@quick
@given(st.data())
def test_attention_is_its_reference(data):
    q = data.draw(spikes())
    k, v = (draw_spikes(*q.shape, rate=data.draw(rates), seed=data.draw(seeds)) for _ in "kv")
    wanted, _ = attend(q, k, v, attending.step_of(q.shape[-1]), attending.at_rest(q))
    assert_words(attending.run_kernels(q, k, v), wanted)


@quick
@given(st.data())
def test_pooled_spikes_are_their_reference(data):
    stride = data.draw(st.sampled_from([1, 2]))
    pooling.assert_pools(data.draw(spikes(factor=stride)), stride)


@quick
@given(st.data())
def test_pooled_membranes_are_their_reference(data):
    shape = data.draw(spikes(factor=2)).shape
    _, images, height, width, count = shape
    neuron = data.draw(neurons(count))
    v = data.draw(st.none() | whole_numbers(images, height // 2, width // 2, count))
    current = data.draw(whole_numbers(*shape))
    pooling.assert_pools_membranes(current, neuron.theta, neuron.leak, v)


@quick
@given(st.data())
def test_the_image_layer_is_its_reference(data):
    moves, num_steps = data.draw(st.booleans()), data.draw(st.integers(1, 9))
    images, height, width = data.draw(st.tuples(st.integers(1, 3), sides, sides))
    inputs, outputs = data.draw(st.integers(1, 5)), data.draw(channels)
    x = some_images(num_steps if moves else 1, images, height, width, inputs, seed=data.draw(seeds))
    most = data.draw(st.integers(1, imaging.INT16_SUM // (9 * inputs)))
    step = replace(
        imaging.step_of(inputs, outputs, most=most), neuron=data.draw(neurons(outputs, 1 << 23))
    )
    v = None
    if num_steps == 1:  # a stream
        v = data.draw(st.none() | whole_numbers(images, height, width, outputs, most=1 << 23))
    imaging.assert_fires(x, step, num_steps, v)


@quick
@given(st.data())
def test_the_readout_is_its_reference(data):
    shape = data.draw(spikes()).shape
    _, images, height, width, inputs = shape
    step = replace(
        reading.step_of(inputs, data.draw(st.integers(1, 20))), neuron=data.draw(neurons(inputs))
    )
    v = data.draw(whole_numbers(images, inputs)) * height * width
    reading.assert_reads(data.draw(whole_numbers(*shape)), step, v)
