"""Layers of synapses: what is exchanged in a model leaves what it computes."""

import copy

import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.nn.neuron import SyncedNorm
from spikedriven.nn.synapse import sync_norms


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
