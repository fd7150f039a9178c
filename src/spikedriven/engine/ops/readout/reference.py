"""From the membrane stream to the classes' scores."""

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.bits import Spikes
from spikedriven.engine.ops.neuron.reference import Integers, fire
from spikedriven.engine.plan import Neuron, ReadoutStep


def summed(neuron: Neuron, tokens: int) -> Neuron:
    """Return neurons that fire on a sum over tokens exactly where the given ones fire on a mean."""
    theta = neuron.theta.astype(np.int64) * tokens
    return Neuron(theta=theta, leak=neuron.leak)


def logits(total: Integers, step: ReadoutStep, num_steps: int) -> NDArray[np.float32]:
    """Return the mean of whole-numbered scores over time: the last and only multiplication.

    Args:
        total: Sums of the scores over all steps so far, [B, K].
        step: Knows what one unit of them is worth.
        num_steps: How many steps were added up.
    """
    return (total * (step.scale / num_steps)).astype(np.float32)


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
