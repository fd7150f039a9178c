"""What a run counts, against a count that torch's convolutions and NumPy make of the reference."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tests.helpers.lively import lively, some_images

import spikedriven as sd
from spikedriven.engine import run
from spikedriven.engine.plan import FireStep, ImageStep, ReadoutStep, StreamStep
from spikedriven.engine.reference import run_reference
from spikedriven.engine.stats import LayerStats, Stats

SMALL = sd.SDTConfig(1, 64, 7, stem_pool="0011")
CONFIGS = {
    "four steps": SMALL,
    "six steps": replace(SMALL, num_steps=6),
    "one step, odd sides": sd.SDTConfig(1, 40, 7, num_heads=5, stem_pool="0000", num_steps=1),
}
SIDES = {"four steps": (8, 12), "six steps": (8, 4), "one step, odd sides": (5, 7)}


@cache
def counted(name, weights="int8", *, moving=False):
    """Run a network and its reference; return the program, pixels, counts and trace."""
    config = CONFIGS[name]
    program = sd.compile(lively(config), weights)
    steps = (config.num_steps,) if moving else ()
    x = some_images(3, *steps, 3, *SIDES[name])
    _, stats = program.run(x)
    return program, x, stats, run_reference(program, x)[1]


def layers(program, *kinds):
    return [step for step in program.steps if isinstance(step, kinds)]


def synapses_driven(s, kernel):
    """Convolve spikes [T, B, H, W, C] with ones: every answer is a synapse, for one output."""
    x = torch.from_numpy(np.moveaxis(s, -1, 2).astype(np.float64)).flatten(0, 1)
    ones = torch.ones(1, x.shape[1], kernel, kernel, dtype=torch.float64)
    return int(torch.nn.functional.conv2d(x, ones, padding=kernel // 2).sum())


CASES = [(name, moving) for name in CONFIGS for moving in (False, True)]


@pytest.mark.parametrize(("name", "moving"), CASES)
def test_additions_are_the_synapses_that_spikes_drive(name, moving):
    program, _, stats, trace = counted(name, moving=moving)
    for step in layers(program, FireStep, StreamStep):
        s, (kernel, _, inputs, outputs) = trace.spikes[step.source], step.weight.shape
        counts = stats.layers[step.name]
        assert counts.spikes == s.sum()
        assert counts.additions == synapses_driven(s, kernel) * outputs
        assert counts.dense == synapses_driven(np.ones_like(s), kernel) * outputs
        assert inputs * outputs * s[..., 0].size <= counts.dense * kernel**2
    (head,) = layers(program, ReadoutStep)
    fired = trace.spikes["head_lif"]
    assert stats.layers["head_lif"].spikes == fired.sum()
    assert stats.layers["head_lif"].additions == fired.sum() * len(head.bias)
    assert stats.layers["head_lif"].dense == fired.size * len(head.bias)


@pytest.mark.parametrize(("name", "moving"), CASES)
def test_an_images_additions_are_those_of_its_bits_seen_once(name, moving):
    program, x, stats, _ = counted(name, moving=moving)
    (step,) = layers(program, ImageStep)
    frames = x.swapaxes(0, 1) if moving else x[None]
    bits = np.unpackbits(np.moveaxis(frames, 2, -1)[..., None], axis=-1)
    planes = np.moveaxis(bits, -1, 0).reshape(-1, *bits.shape[1:5]).astype(np.bool_)
    outputs, counts = step.weight.shape[-1], stats.layers["stem.image"]
    assert counts.spikes == planes.sum()
    assert counts.additions == synapses_driven(planes, 3) * outputs
    assert counts.dense == synapses_driven(np.ones_like(planes), 3) * outputs


@pytest.mark.parametrize(("name", "moving"), CASES)
@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_a_row_is_read_once_per_channel_that_fires_in_four_steps(name, moving, weights):
    program, _, stats, trace = counted(name, weights, moving=moving)
    for step in layers(program, FireStep, StreamStep):
        s, (kernel, _, _, outputs) = trace.spikes[step.source], step.weight.shape
        groups = [s[t : t + 4] for t in range(0, len(s), 4)]
        needed = sum(synapses_driven(group.any(axis=0)[None], kernel) for group in groups)
        counts = stats.layers[step.name]
        blocks = -(-outputs * step.weight.itemsize // counts.row_bytes)  # of output channels
        assert counts.row_bytes >= min(outputs, 64) * step.weight.itemsize
        assert counts.rows % blocks == 0
        # Rows of zeros fill each of a pixel's fifteen groups up to a multiple of four.
        most_zeros = 3 * 15 * len(groups) * s[0, ..., 0].size
        assert needed <= counts.rows // blocks <= needed + most_zeros
        assert counts.bytes_read == counts.rows * counts.row_bytes


def test_a_spike_at_the_border_drives_fewer_synapses():
    program, _, stats, _ = counted("one step, odd sides")
    step = next(step for step in layers(program, FireStep) if len(step.weight) == 3)
    inside = 9 * stats.layers[step.name].spikes * step.weight.shape[-1]
    assert stats.layers[step.name].additions < inside


def test_skipped_is_the_share_of_dense_work_not_done():
    _, _, stats, _ = counted("four steps")
    for layer in stats:
        assert layer.skipped == 1 - layer.additions / layer.dense
        assert 0 < layer.skipped < 1


def test_all_black_images_cost_no_addition_in_the_first_layer():
    program, x, *_ = counted("four steps")
    _, stats = program.run(np.zeros_like(x))
    assert stats.layers["stem.image"].additions == 0
    _, stats = program.run(np.full_like(x, 255))
    assert stats.layers["stem.image"].skipped == 0


def test_counts_do_not_depend_on_threads_or_on_how_the_batch_travels(monkeypatch):
    program, x, stats, _ = counted("six steps")

    def figures(stats):
        return {
            name: (c.spikes, c.additions, c.dense, c.rows, c.row_bytes)
            for name, c in stats.layers.items()
        }

    assert figures(program.run(x, threads=1)[1]) == figures(stats)
    monkeypatch.setattr(run, "PIXELS_AT_ONCE", 1)
    monkeypatch.setattr(run, "LIST_BYTES", 1)
    split = program.run(x)[1]
    assert figures(split) == figures(stats)
    assert split.images == stats.images == len(x)


def test_the_total_is_the_sum_of_the_layers_and_two_runs_add_up():
    program, x, stats, _ = counted("four steps")
    assert list(stats.layers) == [
        step.name for step in layers(program, ImageStep, FireStep, StreamStep, ReadoutStep)
    ]
    assert stats.total.additions == sum(stats.additions.values()) > 0
    assert stats.total.dense == sum(layer.dense for layer in stats)
    both = Stats()
    for _ in range(2):
        both.add(program.run(x)[1])
    assert both.images == 2 * len(x)
    assert both.additions == {name: 2 * n for name, n in stats.additions.items()}


def test_counts_of_two_layers_add_up_field_by_field():
    a = LayerStats(spikes=1, additions=2, dense=3, rows=4, row_bytes=128, seconds=5.0)
    a.add(LayerStats(spikes=10, additions=20, dense=30, rows=40, row_bytes=128, seconds=50.0))
    assert a == LayerStats(
        spikes=11, additions=22, dense=33, rows=44, row_bytes=128, seconds=55.0
    )  # fmt: skip
