"""Layers of weights: the kernels against NumPy, the reference against torch's convolution."""

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

from spikedriven.engine.bits import WORD, words_for
from spikedriven.engine.ops.events import cpu as events
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.ops.synapse import cpu
from spikedriven.engine.ops.synapse.reference import add_rows, fire_current, stream_current
from spikedriven.engine.plan import FireStep, Neuron, StreamStep

MOST = {"int8": 63, "int16": 16383}
"""The largest weights that the compiler makes."""
WIDTHS = list(MOST)


# ------------------------------------------------------------------ a layer, drawn; a layer, run


def draw_weight(width, kernel, inputs, outputs):
    weight = draw_integers(kernel, kernel, inputs, outputs, most=MOST[width], seed=3)
    if width == "int8":  # the compiler keeps sums within 16 bits
        while np.abs(weight).sum(axis=(0, 1, 2)).max() > 65534:
            weight = np.trunc(weight * 0.9).astype(np.int64)
    return weight.astype(width)


def fire_step(weight, leak=(1,)):
    outputs, up = weight.shape[-1], 7 if weight.dtype == np.int8 else 0
    unit = MOST[str(weight.dtype)] << up
    return FireStep(
        name="layer",
        source="s",
        weight=weight,
        bias=draw_integers(outputs, most=unit, seed=4).astype(np.int32),
        up=up,
        neuron=Neuron(theta=np.full(outputs, unit // 2, np.int32), leak=leak),
    )


def stream_step(weight, leak=(1,), *, begins=False, fires=True):
    outputs, down = weight.shape[-1], 4
    gains = np.array([m << e for e in range(4) for m in (4, 5, 6, 7)], np.int32)
    unit = MOST[str(weight.dtype)] * 4 >> down
    neuron = Neuron(theta=np.full(outputs, unit, np.int32), leak=leak)
    return StreamStep(
        name="layer",
        source="s",
        weight=weight,
        gain=np.resize(gains, outputs),
        bias=draw_integers(outputs, most=unit << down, seed=5).astype(np.int32),
        down=down,
        pool=False,
        begins=begins,
        neuron=neuron if fires else None,
        emits="fire" if fires else "",
    )


def lists_of(s, kernel, taps):
    """List events as the engine does: lists, and which each tile of each pixel reads."""
    words, (_, images, height, width, channels) = to_words(s), s.shape
    inputs = words_for(channels) * WORD
    near = np.zeros((len(words) + 1, events.room_for(inputs)), np.uint16)
    totals = np.zeros((2, len(words)), np.int64)
    if taps == 1:
        events.list_pixels(words, inputs, near, totals)
        return near, events.visits(images, height, width, kernel**2, near.shape[1])
    events.list_pixels(words, -1, near, totals)
    lists = np.zeros((len(words) + 1, events.room_for(taps * inputs)), np.uint16)
    events.merge_neighbours(near, height, width, inputs, 0, len(words), lists, totals)
    return lists, events.visits(images, height, width, 1, lists.shape[1])


def laid_out(step, taps):
    return cpu.lay_out(step.weight, len(step.weight) ** 2 // taps)


def membranes(v):
    """Lay out [B, H, W, C] as kernels take it."""
    return to_rows(v[None])[:, 0].copy()


def shape_of(s, step):
    return (*s.shape[:4], step.weight.shape[-1])


def run_fire(s, step, taps, v=None):
    """Run the kernel: packed spikes, and the membranes behind them where some were given."""
    n, panels = s[0, ..., 0].size, words_for(step.weight.shape[-1])
    words = np.full((n, 4, panels), GARBAGE)
    given = None if v is None else membranes(v)
    theta = cpu.padded_to_words(step.neuron.theta, cpu.NEVER)
    cpu.fire_layer(
        laid_out(step, taps), *lists_of(s, len(step.weight), taps),
        cpu.padded_to_words(step.bias, 0), theta, leak_array(step.neuron.leak), step.up, given,
        v is not None, words, 0, len(s),
    )  # fmt: skip
    return words, given


def run_stream(s, step, before, taps, v=None):
    """Run the kernel on a copy of the stream [T, B, H, W, D]: the stream, spikes, membranes."""
    stream = to_stream(before)
    panels, n = stream.shape[:2]
    words = np.full((n, 4, panels), GARBAGE)
    given = None if v is None else membranes(v)
    theta = leak = None
    if step.neuron is not None:
        theta = cpu.padded_to_words(step.neuron.theta, cpu.NEVER)
        leak = leak_array(step.neuron.leak)
    cpu.stream_layer(
        laid_out(step, taps), *lists_of(s, len(step.weight), taps), cpu.gain_digits(step.gain),
        cpu.padded_to_words(step.bias, 0), step.down, stream, step.begins, theta, leak, given,
        v is not None, words, 0, len(s),
    )  # fmt: skip
    return from_stream(stream), words, given


def tilings(step):
    """Return the numbers of taps that a list may cover."""
    return {1, len(step.weight) ** 2}


def assert_fires(s, step, v=None):
    at_rest = np.zeros(shape_of(s, step)[1:], np.int64)
    wanted, after = fire(fire_current(s, step), at_rest if v is None else v, step.neuron)
    for taps in tilings(step):
        words, given = run_fire(s, step, taps, v)
        assert_words(words, wanted)
        if v is not None:
            channels = after.shape[-1]
            assert np.array_equal(given[:, :channels], membranes(after)[:, :channels])
    return wanted


def assert_streams(s, step, v=None):
    before = draw_integers(*shape_of(s, step), most=1 << 20, seed=6)
    u = stream_current(s, step) + (0 if step.begins else before)
    channels, wanted = u.shape[-1], None
    if step.neuron is not None:
        wanted, after = fire(u, np.zeros_like(u[0]) if v is None else v, step.neuron)
    for taps in tilings(step):
        stream, words, given = run_stream(s, step, before, taps, v)
        assert np.array_equal(stream[:, : len(s), :channels], to_rows(u)[:, : len(s), :channels])
        if wanted is None:
            assert (words == GARBAGE).all()
            continue
        assert_words(words, wanted)
        if v is not None:
            assert np.array_equal(given[:, :channels], membranes(after)[:, :channels])
    return wanted


# ------------------------------------------------------------------ the reference


@pytest.mark.parametrize("kernel", [1, 3])
def test_adding_rows_is_torchs_convolution(kernel):
    s, weight = draw_spikes(2, 3, 5, 6, 7), draw_weight("int16", kernel, 7, 4)
    images = torch.from_numpy(s.reshape(6, 5, 6, 7)).permute(0, 3, 1, 2).double()
    kernels = torch.from_numpy(weight.astype(np.float64)).permute(3, 2, 0, 1)
    wanted = F.conv2d(images, kernels, padding=kernel // 2).permute(0, 2, 3, 1)
    assert np.array_equal(add_rows(s, weight).reshape(6, 5, 6, 4), wanted.numpy())


def test_currents_are_scaled_as_the_plan_says():
    s = draw_spikes(2, 1, 3, 3, 7)
    fires = fire_step(draw_weight("int8", 3, 7, 5))
    sums = add_rows(s, fires.weight)
    assert np.array_equal(fire_current(s, fires), sums * 2**fires.up + fires.bias)
    streams = stream_step(fires.weight)
    exact = (sums * streams.gain + streams.bias) / 2**streams.down
    assert np.array_equal(stream_current(s, streams), np.floor(exact))


# ------------------------------------------------------------------ the kernels


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sides", SIDES, ids=map(str, TOKENS))
def test_any_number_of_tokens(width, kernel, sides):
    s = draw_spikes(4, 2, *sides, 65)
    weight = draw_weight(width, kernel, 65, 70)
    assert 0 < assert_fires(s, fire_step(weight)).mean() < 1
    assert 0 < assert_streams(s, stream_step(weight)).mean() < 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("inputs", CHANNELS)
@pytest.mark.parametrize("outputs", CHANNELS)
def test_any_number_of_channels(width, kernel, inputs, outputs):
    s = draw_spikes(4, 1, 3, 4, inputs)
    weight = draw_weight(width, kernel, inputs, outputs)
    assert_fires(s, fire_step(weight))
    assert_streams(s, stream_step(weight, begins=True))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("steps", STEPS)
def test_any_rate_and_number_of_steps(width, rate, steps):
    s = draw_spikes(steps, 2, 5, 4, 100, rate=rate)
    weight = draw_weight(width, 3, 100, 63)
    assert_fires(s, fire_step(weight))
    assert_streams(s, stream_step(weight))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leak", LEAKS, ids=str)
@pytest.mark.parametrize("steps", STEPS)
def test_carried_membranes_are_taken_up_and_written_back(width, leak, steps):
    s = draw_spikes(steps, 2, 5, 4, 20)
    weight = draw_weight(width, 3, 20, 65)
    v = draw_integers(2, 5, 4, 65, most=MOST[width], seed=7)
    assert_fires(s, fire_step(weight, leak), v)
    assert_streams(s, stream_step(weight, leak), v)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("leak", LEAKS, ids=str)
def test_a_stream_that_begins_forgets_what_was_there(width, leak):
    s, weight = draw_spikes(3, 1, 4, 5, 20), draw_weight(width, 3, 20, 65)
    assert_streams(s, stream_step(weight, leak, begins=True))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("begins", [True, False])
def test_a_layer_without_neurons_only_adds(width, begins):
    s, weight = draw_spikes(3, 1, 4, 5, 20), draw_weight(width, 1, 20, 65)
    assert_streams(s, stream_step(weight, begins=begins, fires=False))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("block", [1, 7, 40])
@pytest.mark.parametrize("near", [0, 1 << 30])
def test_neither_threads_nor_the_size_and_order_of_tasks_change_anything(width, block, near):
    s, weight = draw_spikes(4, 2, 4, 5, 20), draw_weight(width, 3, 20, 130)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "BLOCK", block)
        patch.setattr(cpu, "NEAR", near)
        cpu._schedule.cache_clear()
        assert_fires(s, fire_step(weight))
        assert_streams(s, stream_step(weight))
    cpu._schedule.cache_clear()


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize(("panels", "pixels", "tiles"), [(1, 1, 1), (3, 1000, 1), (12, 784, 9)])
def test_tasks_cover_every_pixel_of_every_panel_once_and_threads_share_them_equally(
    threads, panels, pixels, tiles
):
    tasks, _ = cpu._schedule(panels, 6400, 1, 5, pixels, pixels + 9, tiles, threads)
    visited = np.zeros((panels, pixels * tiles), np.int64)
    for task in tasks:
        visited[task[cpu._PANEL] // WORD, task[cpu._FIRST] : task[cpu._LAST]] += 1
        assert task[cpu._FIRST] % tiles == task[cpu._LAST] % tiles == 0
    assert (visited == 1).all()
    assert pixels < threads or len(tasks) % threads == 0


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("width", "inputs"), [("int8", 57), ("int16", 130)])
def test_the_largest_weights_all_driven_add_up_exactly(width, inputs, sign):
    # 9 * 57 * 63 = 32319: hardly any room is left in 16 bits.
    weight = np.full((3, 3, inputs, 65), sign * MOST[width], width)
    weight[..., ::2] *= -1
    s = np.ones((4, 1, 3, 3, inputs), np.bool_)
    silent = Neuron(theta=np.full(65, cpu.NEVER, np.int32))
    step = FireStep(
        name="layer", source="s", weight=weight, bias=np.zeros(65, np.int32), up=0, neuron=silent
    )
    assert_fires(s, step, np.zeros((1, 3, 3, 65), np.int64))
    _, given = run_fire(s[:1], step, 9, np.zeros((1, 3, 3, 65), np.int64))
    assert abs(int(given[4, 0])) == (9 * inputs * MOST[width] + (given[4, 0] < 0)) // 2
    assert_streams(s, stream_step(weight, begins=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_pixels_of_a_later_list_land_in_their_place(width):
    s, weight = draw_spikes(4, 2, 3, 4, 20), draw_weight(width, 1, 20, 65)
    fires, streams = fire_step(weight), stream_step(weight)
    lists, _ = lists_of(s, 1, 1)
    words = np.full((24, 4, 2), GARBAGE)
    before = draw_integers(*shape_of(s, streams), most=1 << 20, seed=6)
    stream, behind = to_stream(before), np.full((24, 4, 2), GARBAGE)
    theta = cpu.padded_to_words(fires.neuron.theta, cpu.NEVER)
    for lo, hi in ((0, 10), (10, 24)):
        visits = events.visits(1, 1, hi - lo, 1, lists.shape[1])
        cpu.fire_layer(
            cpu.lay_out(weight), lists[lo : hi + 1], visits, cpu.padded_to_words(fires.bias, 0),
            theta, None, fires.up, None, False, words, lo, 4,
        )  # fmt: skip
        cpu.stream_layer(
            cpu.lay_out(weight), lists[lo : hi + 1], visits, cpu.gain_digits(streams.gain),
            cpu.padded_to_words(streams.bias, 0), streams.down, stream, streams.begins, None, None,
            None, False, behind, lo, 4,
        )  # fmt: skip
        assert (words[hi:] == GARBAGE).all()
    at_rest = np.zeros((2, 3, 4, 65), np.int64)
    assert_words(words, fire(fire_current(s, fires), at_rest, fires.neuron)[0])
    u = to_rows(stream_current(s, streams) + before)
    assert np.array_equal(from_stream(stream)[..., :65], u[..., :65])


# ------------------------------------------------------------------ how weights are laid out


def test_digits_of_a_gain_make_the_gain():
    gain = np.array([m << e for e in range(16) for m in (4, 5, 6, 7)], np.int32)
    digits = cpu.gain_digits(gain)[:, : len(gain)].astype(np.int64)
    a, b, c, d, e, f = -digits[:6]  # masks: minus one where the digit is set
    places = 8 * c + 4 * d + 2 * e + f
    assert np.array_equal((4 + 2 * a + b) << places, gain)
    assert np.array_equal(digits[6], places)


def test_padding_keeps_the_values_and_fills_whole_words():
    padded = cpu.padded_to_words(np.arange(70), 9)
    assert padded.tolist() == [*range(70), *[9] * 58]
