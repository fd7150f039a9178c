"""Attention is a mask: its exact facts."""

from functools import partial

import pytest
import torch

from spikedriven.core.attention import (
    GATE_THRESHOLD,
    agreement,
    dilate_tokens,
    mask,
    spike_driven_attention,
)
from spikedriven.core.lif import lif

GATE = partial(lif, v_threshold=GATE_THRESHOLD)


def spikes(rate: float, *shape: int) -> torch.Tensor:
    return (torch.rand(*shape, dtype=torch.float64) < rate).double()


@pytest.fixture
def qkv() -> list[torch.Tensor]:
    return [spikes(rate, 6, 3, 16, 4, 5) for rate in (0.3, 0.15, 0.15)]


def test_the_forward_is_q_and_or_over_tokens_of_k_and_v(qkv):
    q, k, v = (x.bool() for x in qkv)
    gate = (k & v).flatten(3).any(-1)
    assert 0.1 < gate.double().mean() < 0.9
    assert torch.equal(spike_driven_attention(*qkv, GATE).bool(), q & gate[..., None, None])


def test_attention_is_blind_to_the_order_of_key_and_value_tokens(qkv):
    q, k, v = qkv
    order = torch.randperm(20)
    moved = [x.flatten(3)[..., order].unflatten(3, (4, 5)) for x in (k, v)]
    assert torch.equal(
        spike_driven_attention(q, *moved, GATE), spike_driven_attention(q, k, v, GATE)
    )


def test_bytes_give_the_gradients_of_the_plain_products(qkv):
    leaves = [x.clone().requires_grad_() for x in qkv]
    q, k, v = leaves
    gate = spikes(0.5, 6, 3, 16).requires_grad_()
    ours = torch.autograd.grad(
        (mask(q, gate) * 3).sum() + (agreement(k, v) ** 2).sum(), [*leaves, gate]
    )
    plain = (q * gate[..., None, None] * 3).sum() + ((k * v).sum((-2, -1)) ** 2).sum()
    for a, b in zip(ours, torch.autograd.grad(plain, [*leaves, gate]), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_token_dilation_does_not_cross_a_head():
    s = torch.zeros(1, 1, 8, 2, 2)
    s[0, 0, 3, 0, 1] = 1  # last channel of the first of two heads, second token
    dilated = dilate_tokens(s, num_heads=2)[0, 0].flatten(1)
    expected = torch.zeros(8, 4)
    expected[2:4, 0:3] = 1
    assert torch.equal(dilated, expected)
