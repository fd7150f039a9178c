"""Whether a plan can be run: kernels trust its shapes and names, and look at nothing twice."""

import math
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import numpy as np

from spikedriven.engine.bits import WORD, words_for
from spikedriven.engine.plan import (
    ROWS_MOST,
    AttendStep,
    FireStep,
    ImageStep,
    Input,
    Neuron,
    PoolStep,
    Program,
    ReadoutStep,
    Step,
    StreamStep,
)
from spikedriven.errors import ShapeError

SHIFT_MOST = 30
"""Places by which 32 bits can be shifted and still hold something."""
SHOWN = 80
"""Characters of a wrong value that a sentence repeats."""


def check(program: Program) -> None:
    """Refuse a program whose parts do not fit each other.

    Looked at are types, shapes, names and their order: all by which a kernel could read or write
    where nothing is. That no sum overflows is proved by `compile.py` alone.

    Raises:
        ShapeError: A part is of another kind, shape or place than the others need.
    """
    _must(program.weights in ("int8", "int16"), "weights", program.weights, "int8 or int16")
    _check_input(program.input)
    steps = program.steps
    _must(
        isinstance(steps, tuple) and len(steps) > 1 and all(isinstance(s, Step) for s in steps),
        "steps", type(steps).__name__, "a list of steps",
    )  # fmt: skip
    walk = _Walk(program.weights, program.input)
    for place, step in enumerate(steps):
        _must(isinstance(step.name, str) and bool(step.name), "a step's name", step.name, "a word")
        _must(
            isinstance(step, ImageStep) == (place == 0)
            and isinstance(step, ReadoutStep) == (place == len(steps) - 1),
            step.name, f"a {type(step).__name__} at place {place}",
            "an ImageStep where it is first, a ReadoutStep where it is last, and neither elsewhere",
        )  # fmt: skip
        walk.take(step)
    stride = 2**walk.halvings
    _must(program.input.stride == stride, "stride", program.input.stride, f"{stride}")
    known = program.classes
    _must(
        isinstance(known, tuple)
        and all(isinstance(name, str) for name in known)
        and len(known) in (0, program.num_classes),
        "classes", known, f"{program.num_classes} names, or none",
    )  # fmt: skip


@dataclass(slots=True)
class _Map:
    """A layer of spikes."""

    channels: int
    halvings: int
    """How often the image was halved before."""

    def __str__(self) -> str:
        return f"{self.channels} channels of an image halved {self.halvings} times"


@dataclass(slots=True)
class _Walk:
    """What has been computed before a step."""

    weights: str
    input: Input
    spikes: dict[str, _Map] = field(default_factory=dict)
    stream: _Map | None = None

    @property
    def halvings(self) -> int:
        assert self.stream is not None
        return self.stream.halvings

    def take(self, step: Step) -> None:
        """Check one step, and keep what it makes."""
        match step:
            case ImageStep():
                self._image(step)
            case PoolStep():
                source = self._source(step.name, step.source)
                self._emit(step.name, _Map(source.channels, source.halvings + 1))
            case FireStep():
                self._fire(step)
            case StreamStep():
                self._stream(step)
            case AttendStep():
                self._attend(step)
            case ReadoutStep():
                self._readout(step)

    def _image(self, step: ImageStep) -> None:
        name = step.name
        channels = _array(f"{name}.weight", step.weight, "int16", 3, 3, self.input.channels, None)
        _array(f"{name}.bias", step.bias, "int32", 16, channels)
        _check_neuron(name, step.neuron, channels)
        self._emit(name, _Map(channels, 0))

    def _synapses(self, step: FireStep | StreamStep) -> _Map:
        name, source = step.name, self._source(step.name, step.source)
        kernel = 3 if np.shape(step.weight)[:1] == (3,) else 1
        shape = (kernel, kernel, source.channels, None)
        outputs = _array(f"{name}.weight", step.weight, self.weights, *shape)
        rows = words_for(source.channels) * WORD
        _must(rows <= ROWS_MOST, f"{name}.weight", f"{rows} rows a tap", f"at most {ROWS_MOST}")
        _array(f"{name}.bias", step.bias, "int32", outputs)
        return _Map(outputs, source.halvings)

    def _fire(self, step: FireStep) -> None:
        made = self._synapses(step)
        _whole(f"{step.name}.up", step.up, 0, SHIFT_MOST)
        _check_neuron(step.name, step.neuron, made.channels)
        self._emit(step.name, made)

    def _stream(self, step: StreamStep) -> None:
        name, made = step.name, self._synapses(step)
        _whole(f"{name}.down", step.down, 0, SHIFT_MOST)
        _array(f"{name}.gain", step.gain, "int32", made.channels)
        gains = [m << e for e in range(16) for m in (4, 5, 6, 7)]
        _must(
            bool(np.isin(step.gain, gains).all()), f"{name}.gain", "another number",
            "4, 5, 6 or 7, shifted by 0 to 15 places",
        )  # fmt: skip
        for flag, value in (("pool", step.pool), ("begins", step.begins)):
            _must(isinstance(value, bool), f"{name}.{flag}", value, "true or false")
        _must(
            not step.pool or step.neuron is not None, f"{name}.pool", step.pool,
            "false where no neurons follow",
        )  # fmt: skip
        made.halvings += step.pool
        _must(
            step.begins == (self.stream is None), f"{name}.begins", step.begins,
            "true of the first layer that feeds the stream, and of no other",
        )  # fmt: skip
        _must(self.stream in (None, made), name, made, f"{self.stream}, as the stream is")
        self.stream = made
        if step.neuron is None:
            _must(step.emits == "", f"{name}.emits", step.emits, "empty without neurons")
            return
        _check_neuron(name, step.neuron, made.channels)
        self._emit(step.emits, _Map(made.channels, made.halvings))

    def _attend(self, step: AttendStep) -> None:
        name = step.name
        query = self._source(name, step.query)
        for source in (step.key, step.value):
            other = self._source(name, source)
            _must(other == query, source, other, f"{query}, as {step.query} is")
        _must(step.channels == query.channels, f"{name}.channels", step.channels, query.channels)
        if step.gate is not None:
            _check_neuron(name, step.gate, query.channels)
        if (heads := step.dilation_heads) is not None:
            _whole(f"{name}.dilation_heads", heads, 1, query.channels)
            _must(
                query.channels % heads == 0, f"{name}.dilation_heads", heads,
                f"a divisor of {query.channels}",
            )  # fmt: skip
        if step.gate is None and step.dilation_heads is None:
            # The engine masks in place: nobody may look at the query again, or as a key.
            del self.spikes[step.query]
            for source in (step.key, step.value):
                self._source(name, source)
        self._emit(name, query)

    def _readout(self, step: ReadoutStep) -> None:
        name = step.name
        _must(self.stream is not None, name, "without a stream", "behind a StreamStep")
        assert self.stream is not None
        width = self.stream.channels
        classes = _array(f"{name}.weight", step.weight, "int32", width, None)
        _array(f"{name}.bias", step.bias, "int32", classes)
        _check_neuron(name, step.neuron, width)
        _must(
            isinstance(step.scale, float) and 0 < step.scale < math.inf, f"{name}.scale",
            step.scale, "a number above 0",
        )  # fmt: skip

    def _source(self, name: str, source: str) -> _Map:
        _must(source in self.spikes, f"{name}'s source", source, "spikes of a step before it")
        return self.spikes[source]

    def _emit(self, name: str, made: _Map) -> None:
        _must(
            isinstance(name, str) and bool(name) and name not in self.spikes,
            "a layer's name", name, "a word that no other layer has",
        )  # fmt: skip
        self.spikes[name] = made


# ------------------------------------------------------------------ single values


def _must(holds: bool, name: str, found: object, wanted: object) -> None:
    if not holds:
        shown = shorten(str(found), SHOWN) or "empty"
        raise ShapeError(f"{name} is {shown}; it must be {wanted}: compile the run again")


def _whole(name: str, value: object, least: int, most: int) -> None:
    _must(
        isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        name, value, f"a whole number in {least} to {most}",
    )  # fmt: skip


def _array(name: str, x: Any, kind: str, *shape: int | None) -> int:
    """Check type and shape of an array, None an axis of any length; return the last length."""
    found = f"{x.dtype} {list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
    wanted = ", ".join("any" if length is None else str(length) for length in shape)
    _must(
        isinstance(x, np.ndarray)
        and x.dtype.name == kind
        and x.ndim == len(shape)
        and all(n > 0 and m in (None, n) for n, m in zip(x.shape, shape, strict=True)),
        name, found, f"{kind} [{wanted}]",
    )  # fmt: skip
    return int(x.shape[-1])


def _check_neuron(name: str, neuron: Any, channels: int) -> None:
    _must(isinstance(neuron, Neuron), f"{name}.neuron", type(neuron).__name__, "neurons")
    _array(f"{name}.theta", neuron.theta, "int32", channels)
    _must(isinstance(neuron.leak, tuple) and len(neuron.leak) > 0, f"{name}.leak", neuron.leak,
          "one binary place at least")  # fmt: skip
    for place in neuron.leak:
        _whole(f"{name}.leak", place, 0, SHIFT_MOST)


def _check_input(given: Any) -> None:
    _must(isinstance(given, Input), "input", type(given).__name__, "a description of images")
    for name in ("channels", "stride", "num_steps"):
        _whole(f"input.{name}", getattr(given, name), 1, 1 << SHIFT_MOST)
    if given.size is not None:
        _whole("input.size", given.size, 1, 1 << SHIFT_MOST)
    for name in ("mean", "std"):
        values = getattr(given, name)
        _must(
            isinstance(values, tuple)
            and len(values) == given.channels
            and all(isinstance(x, int | float) and math.isfinite(x) for x in values)
            and (name == "mean" or min(values) > 0),
            f"input.{name}", values, f"{given.channels} finite numbers, of std above 0",
        )  # fmt: skip
