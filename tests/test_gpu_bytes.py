"""The bytes that docs/gpu.md shows, counted by hand where a hand can."""

import pytest
from benchmarks import gpu_bytes
from benchmarks.gpu_bytes import WAYS, Bytes

import spikedriven as sd


def test_a_norm_and_its_neurons_by_hand():
    # 10 currents of two bytes: read for the statistics, read to fire, and a spike for each written;
    # backward twice a gradient and a current, and a gradient written; kept is the current
    assert gpu_bytes.neuron(10, 10, "fewest") == Bytes(60, 100, 20)
    # a static image: 10 currents and 40 spikes
    assert gpu_bytes.neuron(10, 40, "fewest") == Bytes(20 + 20 + 80, 2 * (20 + 80) + 20, 20)
    # one by one: norm 20 + 40, neuron 20 + 20 and its membranes 20; back 60, then 40 and 60
    assert gpu_bytes.neuron(10, 10, "one by one") == Bytes(120, 160, 40)


def test_what_joins_the_stream_by_hand():
    # 10 sites of two bytes: the current twice, the stream read and written, the spikes written;
    # backward the gradients of both, both kept, and the stream's gradient written; then two and one
    assert gpu_bytes.joined(10, "ours") == Bytes(100, 160, 40) == gpu_bytes.joined(10, "fewest")
    # by PyTorch: norm 60, addition 60, mean 20; back the mean's gradient twice 20, and norm 100
    assert gpu_bytes.departure(10, "ours") == Bytes(140, 140, 20)
    # norm 240, pool 80 + 20 + 10 indices of 8 bytes each quarter, neuron 40
    forward = 240 + (80 + 20 + 80) + 40
    assert gpu_bytes.entrance(40, True, "ours") == Bytes(
        forward, 60 + 60 + 180 + 400, 80 + 160 + 20
    )
    assert gpu_bytes.entrance(40, True, "fewest") == Bytes(200, 320, 80)


def test_every_norm_is_counted_once():
    config = sd.SDTConfig(3, 64, 10, stem_pool="0011")
    kinds = [kind for kind, _ in gpu_bytes.units(config, 32, 8, "ours")]
    assert kinds.count("norm, addition, neuron") == 2 * config.depth
    assert kinds.count("norm, pool, neuron") == kinds.count("norm, addition, mean") == 1
    assert kinds.count("norm, neuron") == 3 + 4 * config.depth
    assert kinds.count("pool") == 1  # the other is the entrance's


def test_a_convolution_keeps_a_bit_for_a_spike_and_shares_it():
    # 80 spikes in, 40 currents out, 10 weights of a batch of one
    assert gpu_bytes.convolution(80, 40, 10, 1, "fewest") == Bytes(260, 260 + 80 + 40 + 10, 10)
    # with another's it is one: the spikes are read once, and one gradient of them is written
    shared = gpu_bytes.convolution(80, 40, 10, 1, "fewest", shares=True)
    assert shared == Bytes(260 - 160, 80 + 20 + 80 + 40, 0)
    # apart each writes a gradient, and PyTorch adds them: two of 160 are read, and one written
    for way in ("ours", "one by one"):
        alone, beside = (
            gpu_bytes.convolution(80, 40, 10, 1, way, shares=shares) for shares in (False, True)
        )
        assert beside.forward == alone.forward
        assert beside.backward == alone.backward + 3 * 160
    assert gpu_bytes.convolution(80, 40, 10, 1, "one by one").kept == 160


@pytest.mark.parametrize("way", WAYS)
def test_a_networks_bytes_are_the_sum_of_its_units_and_grow_with_its_steps(way):
    config = sd.SDTConfig(2, 64, 10, stem_pool="0011")
    found = gpu_bytes.totals(config, 32, 8, way)
    whole = found.pop("all")
    for part in ("forward", "backward", "kept"):
        parts = sum(getattr(unit, part) for unit in found.values())
        assert getattr(whole, part) == pytest.approx(parts)
    longer = gpu_bytes.totals(sd.SDTConfig(2, 64, 10, stem_pool="0011", num_steps=8), 32, 8, way)
    assert 1.8 < longer["all"].kept / whole.kept < 2  # the static image's current is kept once


def test_no_way_moves_or_keeps_less_than_the_fewest():
    config = sd.SDTConfig(2, 64, 10, stem_pool="1111")
    fewest = gpu_bytes.totals(config, 64, 8, "fewest")
    for way in WAYS[1:]:
        for kind, unit in gpu_bytes.totals(config, 64, 8, way).items():
            for part in ("forward", "backward", "kept"):
                assert getattr(unit, part) >= getattr(fewest[kind], part), (way, kind, part)
