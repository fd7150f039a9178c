"""Remembering spikes as bytes changes no gradient."""

import pytest
import torch
import torch.nn.functional as F

from spikedriven.core.synapse import spike_conv2d, spike_pool


def spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape, dtype=torch.float64) < 0.2).double()


@pytest.mark.parametrize(("size", "bias"), [(1, True), (1, False), (3, True), (3, False)])
def test_the_convolution_is_torchs_with_every_gradient(size, bias):
    s = spikes(3, 5, 6, 7).requires_grad_()
    weight = torch.randn(4, 5, size, size, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, dtype=torch.float64, requires_grad=True) if bias else None
    leaves = [leaf for leaf in (s, weight, b) if leaf is not None]
    padding = size // 2
    ours, theirs = spike_conv2d(s, weight, b, padding), F.conv2d(s, weight, b, padding=padding)
    assert torch.equal(ours, theirs)
    d = torch.randn_like(ours)
    for a, e in zip(
        torch.autograd.grad(ours, leaves, d), torch.autograd.grad(theirs, leaves, d), strict=True
    ):
        assert torch.allclose(a, e, rtol=1e-12)


def test_the_pool_is_an_or_and_sends_the_gradient_where_torchs_does():
    s = spikes(2, 3, 8, 8).requires_grad_()
    ours, theirs = spike_pool(s), F.max_pool2d(s, 3, stride=2, padding=1)
    assert torch.equal(ours, theirs)
    d = torch.randn_like(ours)
    assert torch.equal(torch.autograd.grad(ours, s, d)[0], torch.autograd.grad(theirs, s, d)[0])
