"""Spike-driven attention in bits: the query where key and value agree at any token."""

import numpy as np

from spikedriven.engine.bits import Spikes
from spikedriven.engine.ops.neuron.reference import Integers, fire
from spikedriven.engine.ops.pool.reference import dilate_tokens, pool
from spikedriven.engine.plan import FRACTION, AttendStep


def attend(
    q: Spikes, k: Spikes, v: Spikes, step: AttendStep, state: Integers
) -> tuple[Spikes, Integers]:
    """Mask the query by the gate of its channel.

    Args:
        q: Query, [T, B, H, W, C].
        k: Key.
        v: Value.
        step: Its gate and dilation.
        state: Membranes of the gate's neurons, [B, C]; read and written only where the step has
            neurons (a gate with 1/tau >= 1/2 remembers nothing).

    Returns:
        Spikes, [T, B, H, W, C], and the membranes after.
    """
    gate, state = open_gate(k, v, step, state)
    masked: Spikes = q & gate[:, :, None, None]
    heads = step.dilation_heads
    return (masked if heads is None else dilate_tokens(masked, heads)), state


def open_gate(k: Spikes, v: Spikes, step: AttendStep, state: Integers) -> tuple[Spikes, Integers]:
    """Open the gates of the channels in which key and value agree: arguments as in `attend`.

    Returns:
        Spikes of the gates, [T, B, C], and the membranes after.
    """
    heads = step.dilation_heads
    if heads is not None:
        k, v = pool(k, stride=1), pool(v, stride=1)
    agree = k & v if heads is None else dilate_tokens(k & v, heads)
    counts = agree.sum(axis=(2, 3), dtype=np.int64)
    if step.gate is None:
        return counts > 0, state
    return fire(counts << FRACTION, state, step.gate)
