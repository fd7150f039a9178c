"""The probe sees every spike and changes nothing."""

import pytest
import torch

import spikedriven as sd
from spikedriven.errors import DataError
from spikedriven.nn.neuron import LIF, PLIF
from spikedriven.nn.probe import SpikeCount, count_spikes


def test_counts_are_the_sums_of_what_was_recorded():
    model = sd.create_model("sdt_tiny", width=16, num_heads=1)
    x = torch.rand(3, 1, 8, 8) * 4
    with sd.record_spikes(model) as spikes, count_spikes(model) as counts:
        model(x)
    assert spikes.keys() == counts.keys()
    for name, s in spikes.items():
        assert s.dtype == torch.bool
        assert (counts[name].fired, counts[name].sites) == (int(s.sum()), s.numel())
    assert counts["stem.image"].fired > 0


def test_counts_accumulate_over_calls_and_stop_after_the_block():
    model = sd.create_model("sdt_tiny", width=16, num_heads=1).eval()
    torch.nn.init.ones_(model.stem.image.norm.bias)
    x = torch.rand(2, 1, 8, 8) * 4
    with count_spikes(model) as counts:
        model(x)
        once, sites = counts["stem.image"].fired, counts["stem.image"].sites
        model(x)
    model(x)
    assert counts["stem.image"].fired == 2 * once > 0
    assert counts["stem.image"].sites == 2 * sites
    assert counts["stem.image"].rate == once / sites


def test_before_any_pass_there_is_no_rate():
    with pytest.raises(DataError, match="nothing was counted"):
        _ = SpikeCount().rate


def test_a_neuron_holds_no_state_and_the_parametric_one_a_single_number():
    assert list(LIF().state_dict()) == []
    assert list(PLIF().state_dict()) == ["w"]
    assert PLIF().decay.item() == LIF().decay
