"""Batch norm over all processes is, for a process alone, batch norm."""

import pytest
import torch
from torch import nn

from spikedriven.core.lif import Norm
from spikedriven.core.norm import synced_batch_norm

CHANNELS = 3
# Float64: sums of a few hundred terms in another order.
BAND = 1e-12


def norm() -> Norm:
    torch.manual_seed(1)
    return Norm(
        weight=torch.rand(CHANNELS).double(),
        bias=torch.rand(CHANNELS).double(),
        running_mean=torch.rand(CHANNELS).double(),
        running_var=torch.rand(CHANNELS).double(),
        training=True,
        momentum=0.3,
        eps=1e-5,
    )


@pytest.mark.parametrize("shape", [(2, CHANNELS), (5, CHANNELS, 7), (4, CHANNELS, 3, 2)])
def test_alone_it_is_pytorchs_with_its_running_statistics(shape):
    x, ours, theirs = torch.randn(shape, dtype=torch.float64) + 4, norm(), norm()
    expected = nn.functional.batch_norm(
        x, theirs.running_mean, theirs.running_var, theirs.weight, theirs.bias,
        training=True, momentum=theirs.momentum, eps=theirs.eps,
    )  # fmt: skip
    assert torch.allclose(synced_batch_norm(x, ours), expected, atol=BAND)
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=BAND)
    assert torch.allclose(ours.running_var, theirs.running_var, atol=BAND)


def test_a_single_value_has_no_variance_and_leaves_no_nan():
    ours, before = norm(), norm()
    out = synced_batch_norm(torch.randn(1, CHANNELS, dtype=torch.float64), ours)
    assert torch.allclose(out, ours.bias.expand(1, -1), atol=BAND)
    assert torch.allclose(ours.running_var, before.running_var * 0.7, atol=BAND)
