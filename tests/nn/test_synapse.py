"""Layers of synapses: what is exchanged in a model leaves what it computes."""

import copy

import pytest
import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.nn.neuron import SyncedNorm
from spikedriven.nn.synapse import SpikeConv2d, sync_norms


def test_norms_over_all_processes_keep_weights_and_statistics():
    model = lively(sd.SDTConfig(1, 16, 5, stem_pool="0011", num_heads=2))
    synced = copy.deepcopy(model)
    sync_norms(synced)
    assert sum(isinstance(module, SyncedNorm) for module in synced.modules()) == 5 + 6
    for (name, own), other in zip(
        model.state_dict().items(), synced.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(synced.eval()(x), model(x))


@pytest.mark.parametrize(
    "setting",
    [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}],
    ids=lambda setting: next(iter(setting)),
)
def test_what_a_convolution_of_spikes_does_not_do_it_does_not_take(setting):
    with pytest.raises(TypeError, match=next(iter(setting))):
        SpikeConv2d(4, 4, 3, padding=1, **setting)


def test_a_convolution_of_spikes_is_torchs_of_the_same_settings():
    s = (torch.rand(2, 4, 6, 5) < 0.3).float()
    for size, padding, bias in ((3, 1, True), (3, 0, False), (1, 0, True), (5, 2, False)):
        ours = SpikeConv2d(4, 6, size, padding=padding, bias=bias)
        theirs = torch.nn.Conv2d(4, 6, size, padding=padding, bias=bias)
        theirs.load_state_dict(ours.state_dict())
        assert torch.allclose(ours(s), theirs(s), atol=1e-6)
