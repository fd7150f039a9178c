"""The engine equals `reference.py` bit for bit: every network, input, batch and number of threads.

And it forgets: nothing is left from one call, one sample or one stream to the next.
"""

import os
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tests.helpers.lively import lively, some_images

import spikedriven as sd
from spikedriven.engine import run
from spikedriven.engine.check import check
from spikedriven.engine.plan import AttendStep
from spikedriven.engine.reference import run_reference
from spikedriven.errors import ConfigError, ShapeError

SMALL = sd.SDTConfig(1, 64, 7, stem_pool="0011", num_heads=4)
FLAT = sd.SDTConfig(1, 40, 7, in_channels=2, num_heads=5, stem_pool="0000")
# name -> config, (height, width) of the images
NETWORKS = {
    "digits": (sd.SDTConfig(2, 128, 10, in_channels=1, stem_pool="0011"), (16, 16)),
    "imagenet": (replace(SMALL, stem_pool="1111"), (64, 32)),
    "cifar": (SMALL, (16, 16)),
    "wide images": (SMALL, (4, 36)),
    "no pooling": (FLAT, (6, 6)),
    "one step": (replace(FLAT, num_steps=1), (6, 6)),
    "six steps": (replace(SMALL, num_steps=6), (12, 8)),
    "tap by tap": (sd.SDTConfig(1, 256, 7, 1, num_steps=6, stem_pool="0000"), (3, 4)),
    "tap by tap, pooled": (sd.SDTConfig(1, 256, 7, 1, stem_pool="0001"), (6, 4)),
    "dilated": (replace(SMALL, num_heads=8, dvs_dilation=True), (16, 16)),
    "plif": (replace(FLAT, neuron="plif"), (6, 6)),
    "plif, pooled": (replace(SMALL, neuron="plif"), (16, 16)),
    "plif, dilated, six steps": (
        replace(FLAT, neuron="plif", dvs_dilation=True, num_steps=6, depth=2),
        (5, 7),
    ),
}
ALL = [(name, weights) for name in NETWORKS for weights in ("int16", "int8")]


@cache
def program_of(name, weights="int8"):
    config, (height, width) = NETWORKS[name]
    model = lively(config, size=max(height, width, 12))
    return sd.compile(model, weights, mean=(0.4,) * config.in_channels)


@cache
def inputs_of(name, count=5, *, moving=False):
    config, (height, width) = NETWORKS[name]
    steps = (config.num_steps,) if moving else ()
    return some_images(count, *steps, config.in_channels, height, width)


def assert_equals_reference(program, x, **settings):
    """Compare logits and the scores after every step; return the reference's trace."""
    wanted, trace = run_reference(program, x)
    scores, _ = program.engine.scores(x, **settings)
    logits, _ = program.run(x, **settings)
    assert np.array_equal(scores, trace.scores)
    assert logits.dtype == np.float32
    assert np.array_equal(logits, wanted)
    return trace


# ------------------------------------------------------------------ the whole network


@pytest.mark.parametrize("moving", [False, True], ids=["images", "frames"])
@pytest.mark.parametrize(("name", "weights"), ALL)
def test_every_network_computes_its_reference(name, weights, moving):
    x = inputs_of(name, moving=moving)
    trace = assert_equals_reference(program_of(name, weights), x)
    for layer, s in trace.spikes.items():
        assert s.any(), f"{layer} is silent"
    assert len(np.unique(trace.scores.sum(axis=0), axis=0)) > 1  # images are told apart


@pytest.mark.parametrize(("name", "weights"), ALL)
def test_every_plan_fits_together(name, weights):
    check(program_of(name, weights))


@pytest.mark.parametrize("name", ["plif, pooled", "plif, dilated, six steps"])
def test_among_the_networks_some_gates_remember(name):
    steps = [step for step in program_of(name).steps if isinstance(step, AttendStep)]
    assert any(step.gate is not None for step in steps)


@pytest.mark.parametrize(("name", "weights"), ALL)
def test_images_one_by_one_score_as_in_their_batch(name, weights):
    program, x = program_of(name, weights), inputs_of(name)
    together, _ = program.engine.scores(x)
    for b in range(len(x)):
        alone, _ = program.engine.scores(x[b : b + 1])
        assert np.array_equal(alone[:, 0], together[:, b])


@pytest.mark.parametrize("moving", [False, True], ids=["images", "frames"])
@pytest.mark.parametrize("name", ["cifar", "no pooling", "six steps"])
def test_a_batch_may_be_larger_than_what_travels_together(name, moving, monkeypatch):
    program, x = program_of(name), inputs_of(name, moving=moving)
    pixels = x.shape[-1] * x.shape[-2]
    monkeypatch.setattr(run, "PIXELS_AT_ONCE", 2 * pixels)  # five images: two, two and one
    monkeypatch.setattr(run, "LIST_BYTES", 1)  # as few pixels per list as there may be
    assert_equals_reference(program, x)


def test_a_batch_larger_than_what_really_travels_together_is_whole():
    program = program_of("one step")
    count = run.PIXELS_AT_ONCE // 36 + 3
    x = np.resize(inputs_of("one step"), (count, 2, 6, 6))
    logits, stats = program.run(x)
    assert stats.images == count
    assert np.array_equal(logits, np.resize(program.run(x[:5])[0], logits.shape))


def test_one_large_image_is_more_than_a_list_of_events():
    program = program_of("no pooling", "int16")
    assert_equals_reference(program, some_images(1, 2, 70, 90))


@pytest.mark.parametrize(("name", "weights"), ALL)
def test_threads_change_nothing(name, weights):
    program, x = program_of(name, weights), inputs_of(name)
    one, _ = program.engine.scores(x, threads=1)
    two, _ = program.engine.scores(x, threads=min(2, run.numba.config.NUMBA_NUM_THREADS))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(("name", "weights"), ALL)
def test_a_call_leaves_nothing_for_the_next(name, weights):
    program, x = program_of(name, weights), inputs_of(name)
    first, _ = program.run(x)
    program.run(255 - x)
    program.run(inputs_of(name, 2, moving=True))
    program.stream().push(x)
    program.run(np.full_like(x, 255))
    again, _ = program.run(x)
    assert np.array_equal(again, first)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("moving", [False, True])
def test_no_image_has_no_logits_as_in_the_float_model(dtype, moving):
    program, x = program_of("six steps"), inputs_of("six steps", 1, moving=moving)[:0]
    config, (height, width) = NETWORKS["six steps"]
    model = sd.SpikeDrivenTransformer(config).eval()
    logits, stats = program.run(x.astype(dtype))
    wanted = model(torch.from_numpy(x.astype(np.float32)))
    assert logits.shape == wanted.shape == (0, config.num_classes)
    assert logits.dtype == np.float32
    assert (stats.images, stats.additions) == (0, {})
    assert np.array_equal(logits, run_reference(program, x)[0])
    frame = np.zeros((0, config.in_channels, height, width), dtype)
    assert program.stream().push(frame).shape == logits.shape
    assert [part.shape for part in program.engine.decide(frame, 0.9)] == [logits.shape, (0,)]
    assert_equals_reference(program, inputs_of("six steps"))


def test_floats_are_read_as_the_bytes_they_came_from():
    program, x = program_of("cifar"), inputs_of("cifar")
    real = (x / np.float32(255) - np.float32(0.4)).astype(np.float32)
    assert np.array_equal(program.run(real)[0], program.run(x)[0])


def test_frames_that_stay_the_same_are_an_image():
    program, x = program_of("six steps"), inputs_of("six steps")
    still = np.repeat(x[:, None], 6, axis=1)
    assert np.array_equal(program.engine.scores(still)[0], program.engine.scores(x)[0])


# ------------------------------------------------------------------ streams


@pytest.mark.parametrize(("name", "weights"), ALL)
def test_a_stream_is_the_whole_run_after_every_step(name, weights):
    program, x = program_of(name, weights), inputs_of(name, moving=True)
    scores, _ = program.engine.scores(x)
    stream = program.stream()
    scale = program.steps[-1].scale
    for t in range(x.shape[1]):
        wanted = scores[: t + 1].sum(axis=0) * (scale / (t + 1))
        assert np.array_equal(stream.push(x[:, t]), wanted.astype(np.float32)), t
    assert np.array_equal(wanted.astype(np.float32), program.run(x)[0])


@pytest.mark.parametrize("name", ["cifar", "plif, pooled", "plif, dilated, six steps"])
def test_streams_carry_nothing_from_each_other(name):
    program = program_of(name)
    a, b = inputs_of(name, moving=True)[:2], inputs_of(name, moving=True)[2:4]
    alone = program.stream()
    wanted = [alone.push(a[:, t]) for t in range(a.shape[1])]
    first, second = program.stream(), program.stream()
    for t in range(a.shape[1]):
        second.push(b[:, t])
        assert np.array_equal(first.push(a[:, t]), wanted[t])
        program.run(b)


def test_what_a_stream_remembers_is_in_its_state():
    program, x = program_of("cifar"), inputs_of("cifar", moving=True)
    straight, broken = program.stream(), program.stream()
    for stream in (straight, broken):
        stream.push(x[:, 0])
    for v in broken.state.values():
        v[...] = 0
    assert not np.array_equal(straight.push(x[:, 1]), broken.push(x[:, 1]))


def test_a_stream_goes_on_for_as_long_as_it_is_fed():
    program, longer = program_of("cifar"), program_of("cifar")
    x = some_images(2, 9, 3, 16, 16)
    longer = replace(longer, input=replace(longer.input, num_steps=9))
    stream = program.stream()
    for t in range(9):
        logits = stream.push(x[:, t])
    assert stream.steps == 9
    assert np.array_equal(logits, longer.run(x)[0])


@pytest.mark.parametrize("shape", [(2, 4, 3, 16, 16), (3, 16, 16), (1, 3, 16, 16), (2, 3, 16, 20)])
def test_a_stream_refuses_another_shape_and_goes_on(shape):
    program, x = program_of("cifar"), inputs_of("cifar", 2, moving=True)
    stream, undisturbed = program.stream(), program.stream()
    for each in (stream, undisturbed):
        each.push(x[:, 0])
    with pytest.raises(ShapeError, match="stream") as raised:
        stream.push(np.zeros(shape, np.uint8))
    assert "\n" not in str(raised.value)
    assert np.array_equal(stream.push(x[:, 1]), undisturbed.push(x[:, 1]))


# ------------------------------------------------------------------ deciding early


@pytest.mark.parametrize("name", ["digits", "one step", "six steps", "plif"])
def test_deciding_never_early_is_the_whole_run(name):
    program, x = program_of(name), inputs_of(name)
    logits, steps = program.engine.decide(x, 1.0)
    assert np.array_equal(logits, program.run(x)[0])
    assert (steps == program.input.num_steps).all()


def test_confidence_one_never_stops_however_sure_the_network_is():
    program, x = program_of("six steps"), inputs_of("six steps")
    readout = replace(program.steps[-1], scale=1e6)  # shares are exactly 0 and 1
    sure = replace(program, steps=(*program.steps[:-1], readout))
    assert (sure.engine.decide(x, 0.999)[1] < 6).any()
    logits, steps = sure.engine.decide(x, 1.0)
    assert (steps == 6).all()
    assert np.array_equal(logits, sure.run(x)[0])


def test_less_confidence_stops_earlier_at_the_stream_so_far():
    program, x = program_of("six steps"), inputs_of("six steps")
    scores, _ = program.engine.scores(x)
    counts = np.arange(1, 7)[:, None, None]
    so_far = (scores.cumsum(axis=0) * (program.steps[-1].scale / counts)).astype(np.float32)
    shares = np.exp(so_far - so_far.max(axis=-1, keepdims=True))
    sure = (shares / shares.sum(axis=-1, keepdims=True)).max(axis=-1)  # [T, B]
    before = np.full(len(x), 6)
    for confidence in (0.9, np.median(sure), sure.min(), 0.01):
        logits, steps = program.engine.decide(x, float(confidence))
        for b, stopped in enumerate(steps):
            enough = np.flatnonzero(sure[:, b] >= confidence)
            assert stopped == (enough[0] + 1 if len(enough) else 6)
            assert np.array_equal(logits[b], so_far[stopped - 1, b])
        assert (steps <= before).all()
        before = steps
    assert (steps == 1).all()


@pytest.mark.parametrize("confidence", [0.0, -1.0, 1.01, np.nan])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ConfigError, match=r"confidence is .*; it must lie in \(0, 1\]"):
        program_of("cifar").engine.decide(inputs_of("cifar"), confidence)


def test_deciding_early_needs_images():
    with pytest.raises(ShapeError, match="deciding early needs images"):
        program_of("cifar").engine.decide(inputs_of("cifar", moving=True), 0.9)


# ------------------------------------------------------------------ refusals, and absences


@pytest.mark.parametrize("threads", [0, -1, 10**6, True, 1.5, "2"])
def test_threads_that_are_not_there_are_refused(threads):
    program, x = program_of("cifar"), inputs_of("cifar")
    before = run.numba.get_num_threads()
    for call in (
        lambda: program.run(x, threads=threads),
        lambda: program.engine.decide(x, 0.9, threads=threads),
        lambda: program.stream(threads=threads).push(x),
    ):
        with pytest.raises(ConfigError, match=f"threads is {threads!r}; it must be a whole number"):
            call()
    assert run.numba.get_num_threads() == before


def test_a_run_leaves_the_number_of_threads_as_it_was():
    before = run.numba.get_num_threads()
    program_of("cifar").run(inputs_of("cifar"), threads=1)
    assert run.numba.get_num_threads() == before


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 16, 16), "has 1 channels"),
        ((3, 16, 16), "it must be uint8 or real"),
        ((2, 3, 16, 18), "multiples of 4"),
        ((2, 5, 3, 16, 16), "has T = 5 steps"),
        ((2, 3, 0, 16), "has an empty axis"),
    ],
    ids=["channels", "rank", "stride", "steps", "empty"],
)
def test_other_shapes_are_refused_before_anything_runs(shape, message):
    program = program_of("cifar")
    with pytest.raises(ShapeError, match=message):
        program.run(np.zeros(shape, np.uint8))


def test_the_engine_runs_without_torch(tmp_path):
    program, x = program_of("no pooling"), inputs_of("no pooling")
    program.save(tmp_path / "net.spk")
    np.save(tmp_path / "x.npy", x)
    code = """
import sys, numpy as np, spikedriven as sd
program = sd.Program.load("net.spk")
logits, _ = program.run(np.load("x.npy"))
program.stream().push(np.load("x.npy"))
program.engine.decide(np.load("x.npy"), 0.9)
np.save("logits.npy", logits)
print([name for name in ("torch", "lightning", "jaxtyping") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "NUMBA_CACHE_DIR": run.numba.config.CACHE_DIR},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"
    assert np.array_equal(np.load(tmp_path / "logits.npy"), program.run(x)[0])
