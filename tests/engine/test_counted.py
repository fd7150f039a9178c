"""What the energy room counts is what the engine executes: two counts that know nothing of each
other, on the same spikes, exactly."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tests.helpers.lively import LEAST_RATE, lively, some_images

import spikedriven as sd
from spikedriven.conform import counted_is_executed, firing_as
from spikedriven.energy.counts import count
from spikedriven.engine.reference import run_reference

SMALL = sd.SDTConfig(1, 64, 7, num_heads=4, stem_pool="0011")
CONFIGS = {
    "cifar": SMALL,
    "imagenet": replace(SMALL, stem_pool="1111", depth=2),
    "gesture": replace(SMALL, stem_pool="0111", in_channels=2, num_steps=6),
    "dilated": replace(SMALL, num_heads=8, dvs_dilation=True, num_steps=3),
    "one step, no pool": sd.SDTConfig(1, 40, 7, num_heads=5, stem_pool="0000", num_steps=1),
    "plif": replace(SMALL, neuron="plif", width=40, num_heads=5),
}


@cache
def model_of(name):
    return lively(CONFIGS[name], size=max(16, 2 * CONFIGS[name].stride))


def counted_and_executed(name, batch, moving, weights="int16", mean=0.25, std=0.5):
    """Count and execute one batch; return both, on the spikes of the engine's reference."""
    model, config = model_of(name), CONFIGS[name]
    bytes_as = {"mean": (mean,) * config.in_channels, "std": (std,) * config.in_channels}
    program = sd.compile(model, weights, **bytes_as)
    steps = (config.num_steps,) if moving else ()
    pixels = some_images(batch, *steps, config.in_channels, 2 * config.stride, 3 * config.stride)
    _, stats = program.run(pixels)
    x = (torch.from_numpy(pixels).float() / 255 - mean) / std
    with firing_as(model, run_reference(program, pixels)[1].spikes):
        return count(model, x, **bytes_as), stats


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("moving", [False, True], ids=["images", "events"])
def test_counted_additions_are_the_executed_ones(name, batch, moving):
    counts, stats = counted_and_executed(name, batch, moving)
    held, detail = counted_is_executed(
        counts.additions, counts.of("bit_additions"), stats.additions
    )
    assert held, detail
    assert counts.images == stats.images == batch
    for layer, executed in stats.layers.items():
        if layer not in ("stem.image", "head_lif"):
            assert counts[layer]["dense"] == executed.dense
            assert counts[layer]["spikes"] == executed.spikes


def test_int8_executes_what_is_counted_too():
    counts, stats = counted_and_executed("cifar", 3, False, weights="int8")
    assert counted_is_executed(counts.additions, counts.of("bit_additions"), stats.additions)[0]


def test_a_difference_of_one_addition_is_seen():
    counts, stats = counted_and_executed("cifar", 1, False)
    bits = counts.of("bit_additions")
    for name in stats.layers:
        wrong = stats.additions | {name: stats.additions[name] + 1}
        held, detail = counted_is_executed(counts.additions, bits, wrong)
        assert not held
        assert detail.startswith(name)
    missing = {k: v for k, v in stats.additions.items() if k != "stem.second"}
    assert not counted_is_executed(counts.additions, bits, missing)[0]


def test_unforced_the_two_agree_where_every_number_is_exact():
    """Weights, biases and pixels on a coarse grid: floats and integers then fire alike."""
    torch.manual_seed(0)
    config = sd.SDTConfig(1, 40, 7, num_heads=5, stem_pool="0011", num_steps=3)
    model = lively(config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
            module.weight.data.fill_(1)
            module.bias.data = (module.bias.data * 8).round() / 8 + 2**-8
        elif isinstance(module, torch.nn.Conv2d):
            scale = 16 if module.in_channels == 3 else 4
            module.weight.data = (module.weight.data * 100).round() / scale
            if module.bias is not None:
                module.bias.data.zero_()
    model = model.double()
    pixels = some_images(3, 3, 8, 8)
    _, stats = sd.compile(model).run(pixels)
    x = torch.from_numpy(pixels).double() / 255
    counts = count(model, x, mean=(0,) * 3, std=(1,) * 3)
    held, detail = counted_is_executed(
        counts.additions, counts.of("bit_additions"), stats.additions
    )
    assert min(counts.rates.values()) > LEAST_RATE
    assert held, detail
