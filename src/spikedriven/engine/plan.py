"""A compiled network as plain data, and the one file that it is kept in.

Nothing here computes. Every number is whole, except the last scaling of the logits. Membranes and
the stream between blocks count in units of 2**-12.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from spikedriven.errors import CheckpointError, ShapeError
from spikedriven.records import write_whole

if TYPE_CHECKING:
    from spikedriven.engine.run import Engine, Stats, Stream

FORMAT = 1
FRACTION = 12
"""Binary places of membranes and of the stream."""
ROWS_MOST = (1 << 13) - 1
"""Rows of weights, of one tap of a kernel, that an event can name (`ops/events/cpu.py`), one of
zeros not counted."""

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Neuron:
    """A layer of neurons; the equation stands in `ops/neuron/reference.py`."""

    theta: Integers
    """Thresholds, int32 [C], in the units of the current."""
    leak: tuple[int, ...] = (1,)
    """1/tau as binary digits: the sum of 2**-n. (1,) is tau = 2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageStep:
    """The first convolution: bytes in, spikes out."""

    name: str
    weight: Integers
    """int16 [3, 3, c, C]; the nine taps of a pixel never add up beyond int16."""
    bias: Integers
    """int32 [16, C]: one row for each set of borders that a pixel touches (1 top, 2 bottom, 4 left,
    8 right), for the normalisation's mean is subtracted only where there is a pixel."""
    neuron: Neuron


@dataclass(frozen=True, kw_only=True)
class PoolStep:
    """OR over 3x3 pixels, at every second pixel."""

    name: str
    source: str


@dataclass(frozen=True, kw_only=True, eq=False)
class FireStep:
    """Spikes through weights into neurons: current = (sum << up) + bias."""

    name: str
    source: str
    weight: Integers
    """int8 or int16 [k, k, C, D], k = 1 or 3."""
    bias: Integers
    """int32 [D]."""
    up: int
    """Binary places that the current has beyond the weights."""
    neuron: Neuron


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamStep:
    """Spikes through weights into the membrane stream, and the stream into the next neurons.

    current = (sum * gain + bias) >> down, where a gain is (4, 5, 6 or 7) << (0 ... 15): shifts and
    additions.
    """

    name: str
    source: str
    weight: Integers
    """int8 or int16 [k, k, C, D], k = 1 or 3."""
    gain: Integers
    """int32 [D]."""
    bias: Integers
    """int32 [D], in units of 2**-(12 + down), half a unit of the result included."""
    down: int
    pool: bool
    """Take the maximum over 3x3 pixels at every second pixel, before the stream begins."""
    begins: bool
    """The stream begins here; elsewhere the current is added to it."""
    neuron: Neuron | None
    """The neurons that read the stream next; None before the head, which averages first."""
    emits: str
    """Name of their spikes; empty where there are none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttendStep:
    """Query spikes where key and value agree at any token of the channel."""

    name: str
    query: str
    key: str
    value: str
    channels: int
    gate: Neuron | None
    """None where one agreement always opens the gate (1/tau >= 1/2); else its neurons, on counts
    in units of 2**-12."""
    dilation_heads: int | None
    """Heads of the 3x3 dilation of keys, values, products and result; None for no dilation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadoutStep:
    """Mean over tokens, neurons, and the classifier."""

    name: str
    neuron: Neuron
    """Thresholds for the mean; the engine multiplies them by the number of tokens beforehand and
    sums instead."""
    weight: Integers
    """int32 [D, K]."""
    bias: Integers
    """int32 [K]."""
    scale: float
    """What one unit of the scores is worth: the last and only multiplication."""


Step = ImageStep | PoolStep | FireStep | StreamStep | AttendStep | ReadoutStep
_KINDS: dict[str, type[Step]] = {
    kind.__name__: kind
    for kind in (ImageStep, PoolStep, FireStep, StreamStep, AttendStep, ReadoutStep)
}


@dataclass(frozen=True, kw_only=True)
class Input:
    """What the network takes, and how floats are read back into bytes."""

    channels: int
    stride: int
    """Height and width must be multiples of it."""
    num_steps: int
    """Time steps T."""
    size: int | None = None
    """Side of the images, where the program is bound to one."""
    mean: tuple[float, ...]
    """Per channel: a float image is (byte / 255 - mean) / std."""
    std: tuple[float, ...]
    """Per channel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """A network that only adds: what to do, in order, with which integers.

    Two programs are equal where all of their numbers and names are.

    Example:
        >>> import spikedriven as sd
        >>> model = sd.create_model("sdt_tiny", num_classes=10).eval()
        >>> program = sd.compile(model, weights="int8")
        >>> logits, stats = program.run(np.zeros((2, 1, 16, 16), np.uint8))
        >>> logits.shape
        (2, 10)
    """

    weights: str
    """`int16` or `int8`."""
    input: Input
    steps: tuple[Step, ...]
    classes: tuple[str, ...] = ()
    """Names of the classes, where they are known."""

    @property
    def readout(self) -> ReadoutStep:
        """The last step."""
        last = self.steps[-1]
        assert isinstance(last, ReadoutStep)
        return last

    @property
    def num_classes(self) -> int:
        """How many scores an image gets."""
        return len(self.readout.bias)

    @cached_property
    def _content(self) -> tuple[str, dict[str, NDArray[Any]], str]:
        # The plan, its arrays, and the hash of both.
        tensors: dict[str, NDArray[Any]] = {}
        plan = json.dumps(_described(self, "", tensors), sort_keys=True)
        return plan, tensors, _hash(str(FORMAT), plan, tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        return self._content[-1] == other._content[-1]

    def __hash__(self) -> int:
        return hash(self._content[-1])

    def __getstate__(self) -> dict[str, Any]:
        # What is copied or sent to another process is the data, not how they are laid out here.
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @cached_property
    def engine(self) -> "Engine":
        """The program laid out for this processor; made on first use, and kept."""
        from spikedriven.engine.run import Engine

        return Engine(self)

    def run(
        self, x: NDArray[Any], *, threads: int | None = None
    ) -> tuple[NDArray[np.float32], "Stats"]:
        """Classify images or sequences of event frames; see `Engine.run`."""
        return self.engine.run(x, threads=threads)

    def stream(self, *, threads: int | None = None) -> "Stream":
        """Return a fresh sequence that takes one frame at a time; see `run.Stream`."""
        from spikedriven.engine.run import Stream

        return Stream(self.engine, threads=threads)

    def save(self, path: str | Path) -> None:
        """Write the program into one file; what stood there stays whole until all is written.

        Raises:
            CheckpointError: The file cannot be written.
        """
        plan, tensors, digest = self._content
        meta = {"spikedriven_program": str(FORMAT), "plan": plan, "sha256": digest}
        write_whole(Path(path), save(tensors, meta))

    @staticmethod
    def load(path: str | Path) -> "Program":
        """Read a program.

        Raises:
            CheckpointError: The file is missing, is no program, is damaged, does not fit together,
                or is newer than this package.
        """
        return _load(Path(path))


# ------------------------------------------------------------------ dataclasses <-> JSON, tensors


def _described(value: Any, name: str, tensors: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        tensors[name] = np.ascontiguousarray(value)
        return {"tensor": name}
    if isinstance(value, Program | Input | Neuron | Step):
        inner = f"{name}/{value.name}" if hasattr(value, "name") else name
        described = {
            item.name: _described(getattr(value, item.name), f"{inner}/{item.name}", tensors)
            for item in fields(value)
        }
        return {"kind": type(value).__name__, **described}
    if isinstance(value, tuple):
        return [_described(item, name, tensors) for item in value]
    return value


def _restored(value: Any, tensors: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_restored(item, tensors) for item in value)
    if not isinstance(value, dict):
        return value
    if set(value) == {"tensor"}:
        return tensors[value["tensor"]]
    kinds = {**_KINDS, "Program": Program, "Input": Input, "Neuron": Neuron}
    arguments = {key: _restored(item, tensors) for key, item in value.items() if key != "kind"}
    return kinds[value["kind"]](**arguments)


def _hash(version: str, plan: str, tensors: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(f"{version} {plan}".encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _load(path: Path) -> Program:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is not a file; it must be a compiled program: "
            "make one with spikedriven compile RUN -o FILE"
        )
    try:
        with safe_open(path, "np") as file:
            meta = file.metadata() or {}
            version = meta.get("spikedriven_program", "")
            is_ours = version.isdecimal() and "plan" in meta
            # Of others nothing is read: NumPy may not even know their types.
            names = file.keys() if is_ours and int(version) <= FORMAT else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); it must be a whole compiled program: "
            "compile or copy it again"
        ) from error
    if not is_ours:
        raise CheckpointError(
            f"{path} is no compiled program; it must be written by spikedriven compile: "
            "compile the run first"
        )
    if int(version) > FORMAT:
        raise CheckpointError(
            f"{path} has format {version}; this spikedriven reads up to {FORMAT}: "
            "upgrade spikedriven or compile the run again"
        )
    if meta.get("sha256") != _hash(version, meta["plan"], tensors):
        raise CheckpointError(
            f"{path} was altered after it was written; its hash must match its content: "
            "compile or copy it again"
        )
    from spikedriven.engine.check import check

    try:
        program: Program = _restored(json.loads(meta["plan"]), tensors)
        check(program)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a plan that names no program ({type(error).__name__}: {error}); it must "
            "be as spikedriven compile writes it: compile the run again"
        ) from error
    except ShapeError as error:
        raise CheckpointError(f"{path} holds a plan that cannot be run: {error}") from error
    return program
