"""Leaky integrate-and-fire in whole numbers: what every kernel's last lines compute."""

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.bits import Spikes
from spikedriven.engine.plan import Neuron

Integers = NDArray[np.int64]


def fire(i: Integers, v: Integers, neuron: Neuron) -> tuple[Spikes, Integers]:
    """Run neurons over T steps of current.

    Per step: u = v + (i - v) / tau; a spike where u >= theta; v = 0 after a spike, else u. The
    division is a sum of shifts to the right, each rounded down: tau = 2 is `>> 1`.

    Args:
        i: Current, [T, ..., C].
        v: Membranes before, [..., C].
        neuron: Thresholds and leak.

    Returns:
        Spikes, [T, ..., C], and the membranes after.
    """
    spikes = []
    for i_t in i:
        gap = i_t - v
        u = v + sum(gap >> places for places in neuron.leak)
        s = u >= neuron.theta
        v = np.where(s, 0, u)
        spikes.append(s)
    return np.stack(spikes), v
