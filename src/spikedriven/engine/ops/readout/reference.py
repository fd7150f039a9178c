"""From the membrane stream to the classes' scores."""

import numpy as np

from spikedriven.engine.bits import Spikes
from spikedriven.engine.ops.neuron.reference import Integers, fire
from spikedriven.engine.plan import Neuron, ReadoutStep


def summed(neuron: Neuron, tokens: int) -> Neuron:
    """Return neurons that fire on a sum over tokens exactly where the given ones fire on a mean."""
    theta = neuron.theta.astype(np.int64) * tokens
    return Neuron(theta=theta, leak=neuron.leak)


def readout(u: Integers, step: ReadoutStep, v: Integers) -> tuple[Integers, Spikes, Integers]:
    """Sum over tokens, fire, add up the rows of what fired.

    Args:
        u: The stream, [T, B, H, W, D].
        step: Its neurons and weights.
        v: Membranes of the neurons, [B, D].

    Returns:
        Scores, [T, B, K], the spikes [T, B, D], and the membranes after.
    """
    tokens = u.shape[2] * u.shape[3]
    s, v = fire(u.sum(axis=(2, 3)), v, summed(step.neuron, tokens))
    return s.astype(np.int64) @ step.weight.astype(np.int64) + step.bias, s, v
