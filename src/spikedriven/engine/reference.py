"""The whole network in NumPy integers: what the engine must equal, bit for bit.

Slow and short: start here to see what a program means.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedriven.engine.bits import Spikes
from spikedriven.engine.ops.attend.reference import attend
from spikedriven.engine.ops.image.reference import image_current
from spikedriven.engine.ops.neuron.reference import Integers, fire
from spikedriven.engine.ops.pool.reference import pool
from spikedriven.engine.ops.readout.reference import logits, readout
from spikedriven.engine.ops.synapse.reference import fire_current, stream_current
from spikedriven.engine.pixels import read_pixels
from spikedriven.engine.plan import (
    AttendStep,
    FireStep,
    ImageStep,
    PoolStep,
    Program,
    ReadoutStep,
    StreamStep,
)


@dataclass
class Trace:
    """Everything that a run computed, by name; shapes [T, B, H, W, C] and [T, B, K]."""

    spikes: dict[str, Spikes] = field(default_factory=dict)
    stream: Integers = field(default_factory=lambda: np.zeros((), np.int64))
    scores: Integers = field(default_factory=lambda: np.zeros((), np.int64))


def run_reference(program: Program, x: NDArray[Any]) -> tuple[NDArray[np.float32], Trace]:
    """Run a program, one operation after the other, all T steps at once.

    Args:
        program: What to run.
        x: As for `Program.run`.

    Returns:
        Logits [B, K] and all that was computed on the way.
    """
    pixels = read_pixels(program.input, x).transpose(0, 1, 3, 4, 2)  # [S, B, H, W, c]
    num_steps = program.input.num_steps
    trace = Trace()
    for step in program.steps:
        _STEPS[type(step)](step, trace, pixels, num_steps)
    return logits(trace.scores.sum(axis=0), program.readout, num_steps), trace


def _at_rest(i: Integers) -> Integers:
    return np.zeros_like(i[0])


def _image(step: ImageStep, trace: Trace, pixels: NDArray[np.uint8], num_steps: int) -> None:
    i = image_current(pixels, step)
    i = np.broadcast_to(i, (num_steps, *i.shape[1:]))
    trace.spikes[step.name] = fire(i, _at_rest(i), step.neuron)[0]


def _pool(step: PoolStep, trace: Trace, *_given: Any) -> None:
    trace.spikes[step.name] = pool(trace.spikes[step.source])


def _fire(step: FireStep, trace: Trace, *_given: Any) -> None:
    i = fire_current(trace.spikes[step.source], step)
    trace.spikes[step.name] = fire(i, _at_rest(i), step.neuron)[0]


def _stream(step: StreamStep, trace: Trace, *_given: Any) -> None:
    i = stream_current(trace.spikes[step.source], step)
    if step.pool:
        i = pool(i)
    trace.stream = i if step.begins else trace.stream + i
    if step.neuron is not None:
        trace.spikes[step.emits] = fire(trace.stream, _at_rest(i), step.neuron)[0]


def _attend(step: AttendStep, trace: Trace, *_given: Any) -> None:
    q, k, v = (trace.spikes[name] for name in (step.query, step.key, step.value))
    gate = np.zeros((q.shape[1], q.shape[-1]), np.int64)
    trace.spikes[step.name], _ = attend(q, k, v, step, gate)


def _readout(step: ReadoutStep, trace: Trace, *_given: Any) -> None:
    v = np.zeros((trace.stream.shape[1], trace.stream.shape[-1]), np.int64)
    trace.scores, s, _ = readout(trace.stream, step, v)
    trace.spikes[step.name] = s


_STEPS: dict[type, Callable[..., None]] = {
    ImageStep: _image,
    PoolStep: _pool,
    FireStep: _fire,
    StreamStep: _stream,
    AttendStep: _attend,
    ReadoutStep: _readout,
}
