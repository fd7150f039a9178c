"""The neuron in registers: sixteen at a time."""

# mypy: disable-error-code="no-untyped-def"

from numba import types
from numba.extending import overload

from spikedriven.core.kernels import INLINED, inlined
from spikedriven.core.simd import (
    at_least,
    bits_of,
    select,
    shift_right,
    splat_i32,
)


def leaked(gap, leak):
    """Return the share of the gap that one step closes."""
    raise NotImplementedError  # compiled code only


@overload(leaked, jit_options=INLINED)
def _leaked(gap, leak):
    if isinstance(leak, types.NoneType):  # tau = 2
        return lambda gap, leak: shift_right(gap, 1)

    def by_shifts(gap, leak):
        total = shift_right(gap, leak[0])
        for digit in range(1, leak.size):
            total = total + shift_right(gap, leak[digit])
        return total

    return by_shifts


@inlined
def fire_16(i, v, theta, leak):
    """Advance sixteen neurons by a step; return their membranes and their spikes as bits."""
    u = v + leaked(i - v, leak)
    fired = at_least(u, theta)
    return select(fired, splat_i32(0), u), bits_of(fired)
