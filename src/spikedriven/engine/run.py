"""Running a program: NumPy arrays in, NumPy arrays out, no torch.

An `Engine` is a program laid out for this processor. It walks the steps of the plan over a group
of four time steps at a time; what a step computes stands in `ops/*/reference.py`.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from spikedriven.core.memory import zeros
from spikedriven.engine.bits import GROUP, WORD, Words, pack, words_for
from spikedriven.engine.ops.attend import cpu as attend
from spikedriven.engine.ops.events import cpu as events
from spikedriven.engine.ops.image import cpu as image
from spikedriven.engine.ops.pool import cpu as pool
from spikedriven.engine.ops.readout import cpu as readout
from spikedriven.engine.ops.readout.reference import logits, summed
from spikedriven.engine.ops.synapse import cpu as synapse
from spikedriven.engine.pixels import read_pixels
from spikedriven.engine.plan import (
    FRACTION,
    AttendStep,
    FireStep,
    ImageStep,
    Neuron,
    PoolStep,
    Program,
    ReadoutStep,
    Step,
    StreamStep,
)
from spikedriven.engine.stats import LayerStats, Stats
from spikedriven.errors import ConfigError, ShapeError

Array = NDArray[Any]

# Pixels of the first layer that travel together: a batch of small images, or one large image.
PIXELS_AT_ONCE = 65536
# Bytes of merged lists that exist at a time; they should stay in the cache between their writing
# and their reading.
LIST_BYTES = 4 << 20


@dataclass(slots=True)
class _Map:
    """Packed spikes of one layer, with the image's sides."""

    words: Words
    height: int
    width: int


@dataclass
class _Pass:
    """What one group of steps over one chunk of the batch has at hand."""

    images: int
    steps: int
    """Real steps of the group, 1 ... 4."""
    memory: "_Memory"
    state: dict[str, Array] | None
    """Membranes by layer; None where nothing is carried to a next group."""
    resume: bool
    """Whether `state` holds membranes of an earlier group."""
    stats: Stats
    spikes: dict[str, _Map] = field(default_factory=dict)
    stream: Array | None = None
    scores: Array | None = None

    def membranes(self, name: str, sites: int, channels: int) -> Array | None:
        """Return the carried membranes of a layer, or None where nothing is carried."""
        if self.state is None:
            return None
        if name not in self.state:
            self.state[name] = zeros((sites, channels), np.int32)
        return self.state[name]

    def layer(self, name: str) -> LayerStats:
        """Return the counts of a layer."""
        return self.stats.layers.setdefault(name, LayerStats())


class _Memory:
    """Arrays that are used again in every run, by name; they begin as zeros."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[Any, ...], Array] = {}
        self.listed = ""
        """Whose lists of single pixels the shared buffer holds."""
        self.totals = np.zeros((2, 0), np.int64)
        """Of each of these lists: its spikes, and the rows that it names."""

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        key = (name, shape, dtype)
        if key not in self._arrays:
            self._arrays[key] = zeros(shape, dtype)
        return self._arrays[key]

    def lists(self, name: str, pixels: int, rows: int) -> events.Lists:
        """Return room for the lists of some pixels, and the empty list behind them."""
        return self.get(f"{name}lists", (pixels + 1, events.room_for(rows)), np.uint16)

    def clear(self) -> None:
        """Forget all arrays."""
        self._arrays.clear()
        self.listed = ""


class Engine:
    """A program laid out for this processor.

    Args:
        program: What to run.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._layers = [_LAYERS[type(step)](step) for step in program.steps]
        self._memory = _Memory()
        self._shape: tuple[int, ...] = ()
        self._busy = threading.Lock()

    def run(self, x: Array, *, threads: int | None = None) -> tuple[NDArray[np.float32], Stats]:
        """Classify images or sequences of event frames.

        Args:
            x: Images [B, c, H, W] or event frames [B, T, c, H, W], any B, also none; uint8, or real
                numbers as the float model takes them (see `pixels.read_pixels`).
            threads: How many threads share the work; by default all of the processor's. The result
                does not depend on it.

        Returns:
            Logits, float32 [B, K], and what was done, counted.

        Raises:
            ShapeError: The input does not fit the program.
            ConfigError: `threads` is out of range.
        """
        scores, stats = self.scores(x, threads=threads)
        return logits(scores.sum(axis=0), self.program.readout, len(scores)), stats

    def scores(self, x: Array, *, threads: int | None = None) -> tuple[NDArray[np.int64], Stats]:
        """Return the whole-numbered scores after every step, [T, B, K]: arguments as in `run`."""
        pixels = read_pixels(self.program.input, x)
        num_steps = self.program.input.num_steps
        stats = Stats()
        chunk = max(1, PIXELS_AT_ONCE // (pixels.shape[-1] * pixels.shape[-2]))
        parts = []
        with self._busy, _threads(threads):
            for first in range(0, max(1, pixels.shape[1]), chunk):
                part = np.ascontiguousarray(pixels[:, first : first + chunk])
                state: dict[str, Array] | None = {} if num_steps > GROUP else None
                parts.append(self._advance(part, num_steps, state, False, stats))
        return np.concatenate(parts, axis=1), stats

    def decide(
        self, x: Array, confidence: float, *, threads: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Classify static images, stopping for each as soon as its leading class is sure enough.

        Args:
            x: Images [B, c, H, W].
            confidence: Softmax share of the leading class that is enough, in (0, 1]; 1 never stops.
            threads: As in `run`.

        Returns:
            Logits [B, K] at the step at which each image stopped, and that step, [B], 1 ... T.

        Raises:
            ShapeError: The input does not fit the program, or is a sequence.
            ConfigError: `confidence` or `threads` is out of range.
        """
        if not 0 < confidence <= 1:
            raise ConfigError(
                f"confidence is {confidence}; it must lie in (0, 1]: 0.9 stops when one class "
                "has nine tenths"
            )
        x = np.asarray(x)
        if x.ndim != 4:
            raise ShapeError(
                f"the input has {x.ndim} axes; deciding early needs images [B, C, H, W]: "
                "push the frames of a sequence into a stream"
            )
        answers = np.zeros((len(x), self.program.num_classes), np.float32)
        steps = np.zeros(len(x), np.int64)
        for b in range(len(x)):
            stream = Stream(self, threads=threads)
            for t in range(1, self.program.input.num_steps + 1):
                answers[b] = stream.push(x[b : b + 1])[0]
                steps[b] = t
                shares = np.exp(answers[b] - answers[b].max())
                if confidence < 1 and shares.max() / shares.sum() >= confidence:
                    break
        return answers, steps

    def push(
        self, pixels: NDArray[np.uint8], state: dict[str, Array], resume: bool, threads: int | None
    ) -> NDArray[np.int64]:
        """Advance one step: pixels [1, B, c, H, W] in, scores [B, K] out, `state` written back."""
        with self._busy, _threads(threads):
            scores = self._advance(pixels, 1, state, resume, Stats())
        return scores[0]

    def _advance(
        self,
        pixels: NDArray[np.uint8],
        num_steps: int,
        state: dict[str, Array] | None,
        resume: bool,
        stats: Stats,
    ) -> NDArray[np.int64]:
        # All steps of a chunk: the image layer at once, the rest in groups of four steps.
        if not pixels.shape[1]:
            return np.zeros((num_steps, 0, self.program.num_classes), np.int64)
        if self._shape != pixels.shape:  # buffers of another size would only take room
            self._memory.clear()
            self._shape = pixels.shape
        _, images, _, height, width = pixels.shape
        stats.images += images
        groups = -(-num_steps // GROUP)
        scores = np.zeros((groups * GROUP, images, self.program.num_classes), np.int64)
        first = self._layers[0]
        maps: list[Words] = []
        for group in range(groups):
            steps = min(GROUP, num_steps - group * GROUP)
            net = _Pass(images, steps, self._memory, state, resume or group > 0, stats)
            if group == 0:
                maps = first.fire(net, pixels, num_steps, resume)
            net.spikes[first.step.name] = _Map(maps[group], height, width)
            self._memory.listed = ""
            for layer in self._layers[1:]:
                layer(net)
            assert net.scores is not None
            scores[group * GROUP : (group + 1) * GROUP] = net.scores
        return scores[:num_steps]


class Stream:
    """A sequence that arrives one time step at a time; all that is remembered is in `state`.

    After T pushes the logits equal those of `run` on the whole sequence, bit for bit.

    Args:
        engine: The program to run.
        threads: As in `Engine.run`.
    """

    def __init__(self, engine: Engine, *, threads: int | None = None) -> None:
        self._engine = engine
        self._threads = threads
        self.state: dict[str, Array] = {}
        """Membranes, by layer."""
        self.steps = 0
        """How many frames have been pushed."""
        self._total: NDArray[np.int64] | None = None
        self._shape: tuple[int, ...] = ()

    def push(self, frame: Array) -> NDArray[np.float32]:
        """Take one frame per sequence and return the logits so far.

        Args:
            frame: [B, c, H, W] as for `Engine.run`; B, H and W stay those of the first frame.

        Returns:
            Logits [B, K]: the mean over the steps so far.

        Raises:
            ShapeError: The frame does not fit the program, or the frames before it.
        """
        frame = np.asarray(frame)
        if frame.ndim != 4:
            raise ShapeError(
                f"the frame has {frame.ndim} axes; a stream takes one time step [B, C, H, W]: "
                "add or drop an axis"
            )
        if self._shape and frame.shape != self._shape:
            raise ShapeError(
                f"the frame is {frame.shape}; the stream began with {self._shape}: "
                "start a new stream for another size"
            )
        pixels = read_pixels(self._engine.program.input, frame)
        scores = self._engine.push(pixels, self.state, self.steps > 0, self._threads)
        self._shape = frame.shape
        self._total = scores if self._total is None else self._total + scores
        self.steps += 1
        return logits(self._total, self._engine.program.readout, self.steps)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    if number is None:
        number = most
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= most:
        raise ConfigError(
            f"threads is {number!r}; it must be a whole number in 1 to {most}, the processor's: "
            "choose one of them"
        )
    before = numba.get_num_threads()
    numba.set_num_threads(number)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def _leak(neuron: Neuron) -> NDArray[np.int64] | None:
    return None if neuron.leak == (1,) else np.array(neuron.leak, np.int64)


# ------------------------------------------------------------------ the steps, laid out


class _ImageLayer:
    def __init__(self, step: ImageStep) -> None:
        self.step = step
        self.table = image.lay_out(step.weight)
        outputs = self.table.shape[2]
        self.channels = len(step.neuron.theta)
        self.bias = zeros((16, outputs), np.int32)
        self.bias[:, : self.channels] = step.bias
        self.theta = np.full(outputs, synapse.NEVER, np.int32)
        self.theta[: self.channels] = step.neuron.theta
        self.leak = _leak(step.neuron)

    def fire(
        self, net: _Pass, pixels: NDArray[np.uint8], num_steps: int, resume: bool
    ) -> list[Words]:
        """Run all steps; return one map of packed spikes per group of four."""
        begin = time.perf_counter()
        moments, images, channels, height, width = pixels.shape
        sites = images * height * width
        shape = (moments * images, channels, height + 2, 8, width)
        offsets = net.memory.get("offsets", shape, np.uint16)
        outputs = self.table.shape[2]
        image.plane_offsets(pixels.reshape(-1, channels, height, width), outputs, offsets)
        groups = -(-num_steps // GROUP)
        panels = words_for(self.channels)
        # By the number of steps too: those that are not real must still be silent.
        name = f"{self.step.name} x {num_steps}"
        words = net.memory.get(name, (groups, sites, GROUP, panels), np.uint64)
        v = None
        if resume or num_steps == 1:  # a stream
            v = net.membranes(self.step.name, sites, self.table.shape[2])
        image.fire_image(
            offsets, self.table, self.bias, self.theta, self.leak, v, resume,
            images, num_steps, words.view(np.uint32),
        )  # fmt: skip
        layer = net.layer(self.step.name)
        layer.seconds += time.perf_counter() - begin
        bits = np.bitwise_count(pixels)
        sight = np.outer(_taps_in_sight(height), _taps_in_sight(width))
        driven = int((bits.sum(axis=(0, 1, 2), dtype=np.int64) * sight).sum())
        layer.spikes += int(bits.sum(dtype=np.int64))
        layer.additions += driven * self.channels
        layer.dense += 8 * moments * images * channels * int(sight.sum()) * self.channels
        layer.rows += 8 * 3 * channels * moments * sites
        layer.row_bytes = self.table.shape[2] * self.table.itemsize
        return list(words)


class _PoolLayer:
    def __init__(self, step: PoolStep) -> None:
        self.step = step

    def __call__(self, net: _Pass) -> None:
        source = net.spikes[self.step.source]
        sites, _, panels = source.words.shape
        out = net.memory.get(self.step.name, (sites // 4, GROUP, panels), np.uint64)
        pool.pool_spikes(source.words, source.height, source.width, 2, out)
        net.spikes[self.step.name] = _Map(out, source.height // 2, source.width // 2)


class _SynapseLayer:
    """What layers with weights share: the rows, and the lists of events in front of them."""

    def __init__(self, step: FireStep | StreamStep) -> None:
        self.step = step
        self.kernel, _, self.inputs, self.channels = step.weight.shape
        self.taps = events.taps_listed(self.kernel, words_for(self.inputs) * WORD)
        self.rows = synapse.lay_out(step.weight, self.kernel**2 // self.taps)
        self.panels = self.rows.shape[0]
        self.bias = synapse.padded_to_words(step.bias, 0)
        neuron = step.neuron
        self.theta = (
            None if neuron is None else synapse.padded_to_words(neuron.theta, synapse.NEVER)
        )
        self.leak = None if neuron is None else _leak(neuron)

    def listed(self, net: _Pass) -> Iterator[tuple[events.Lists, Array, int]]:
        """Yield lists of events, where each tile of each pixel finds its own, and the first pixel.

        They are counted on the way.
        """
        source, memory = net.spikes[self.step.source], net.memory
        sites, inputs = len(source.words), source.words.shape[2] * WORD
        lists = memory.lists("", sites, inputs)
        if self.taps == 1:
            if memory.listed != self.step.source:
                memory.totals = memory.get("totals", (2, sites), np.int64)
                events.list_pixels(source.words, inputs, lists, memory.totals)
                memory.listed = self.step.source
            rows = self._count(net, source, memory.totals)
            net.layer(self.step.name).rows += rows * self.panels
            tiles, room = self.kernel**2, lists.shape[1]
            yield lists, events.visits(net.images, source.height, source.width, tiles, room), 0
            return
        totals = memory.get("totals", (2, sites), np.int64)
        events.list_pixels(source.words, -1, lists, totals)
        memory.listed = ""
        self._count(net, source, totals)
        chunk = min(sites, max(64, LIST_BYTES // (2 * events.room_for(self.taps * inputs))))
        merged = memory.lists("merged ", chunk, self.taps * inputs)
        for lo in range(0, sites, chunk):
            hi = min(lo + chunk, sites)
            events.merge_neighbours(
                lists, source.height, source.width, inputs, lo, hi, merged, totals
            )
            rows = int(totals[1, : hi - lo].sum())
            net.layer(self.step.name).rows += rows * self.panels
            yield merged, events.visits(1, 1, hi - lo, 1, merged.shape[1]), lo

    def _count(self, net: _Pass, source: _Map, counts: Array) -> int:
        # From the lists of single pixels; returns the rows that they name to all who read them.
        layer = net.layer(self.step.name)
        spikes, rows = counts.sum(axis=1)
        sites = counts.shape[1]
        layer.spikes += int(spikes)
        if self.kernel == 3:
            seen = _seen(net.images, source.height, source.width)
            (spikes, rows), sites = counts @ seen, int(seen.sum())
        layer.additions += int(spikes) * self.channels
        layer.dense += net.steps * sites * self.inputs * self.channels
        layer.row_bytes = WORD * self.rows.itemsize
        return int(rows)


@lru_cache(maxsize=64)
def _seen(images: int, height: int, width: int) -> NDArray[np.int64]:
    """Return, for each pixel, how many of a 3x3 kernel's taps see it."""
    seen = np.outer(_taps_in_sight(height), _taps_in_sight(width))
    return np.tile(seen.reshape(-1), images)


class _FireLayer(_SynapseLayer):
    step: FireStep
    theta: Array

    def __call__(self, net: _Pass) -> None:
        begin = time.perf_counter()
        source = net.spikes[self.step.source]
        sites = len(source.words)
        words = net.memory.get(self.step.name, (sites, GROUP, self.panels), np.uint64)
        v = net.membranes(self.step.name, sites, self.panels * WORD)
        for lists, visits, lo in self.listed(net):
            synapse.fire_layer(
                self.rows, lists, visits, self.bias, self.theta, self.leak, self.step.up, v,
                net.resume, words, lo, net.steps,
            )  # fmt: skip
        net.spikes[self.step.name] = _Map(words, source.height, source.width)
        net.layer(self.step.name).seconds += time.perf_counter() - begin


class _StreamLayer(_SynapseLayer):
    step: StreamStep

    def __init__(self, step: StreamStep) -> None:
        super().__init__(step)
        self.digits = synapse.gain_digits(step.gain)

    def __call__(self, net: _Pass) -> None:
        begin = time.perf_counter()
        step = self.step
        source = net.spikes[step.source]
        height, width = source.height, source.width
        sites = len(source.words)
        channels = self.panels * WORD
        pools = step.pool
        if step.begins:
            name = "currents" if pools else "stream"
            net.stream = net.memory.get(name, (self.panels, sites, GROUP, WORD), np.int32)
        assert net.stream is not None
        words = net.memory.get(
            step.emits or "unused", (sites // 4 if pools else sites, GROUP, self.panels), np.uint64
        )
        v = None
        if step.neuron is not None:
            v = net.membranes(step.emits, len(words), channels)
        for lists, visits, lo in self.listed(net):
            synapse.stream_layer(
                self.rows, lists, visits, self.digits, self.bias, step.down, net.stream,
                step.begins, None if pools else self.theta, self.leak, None if pools else v,
                net.resume, words, lo, net.steps,
            )  # fmt: skip
        if pools:
            assert self.theta is not None
            currents = net.stream
            net.stream = net.memory.get("stream", (self.panels, sites // 4, GROUP, WORD), np.int32)
            pool.pool_membranes(
                currents, height, width, net.stream, self.theta, self.leak, v, net.resume, words,
                net.steps,
            )  # fmt: skip
            height, width = height // 2, width // 2
        if step.neuron is not None:
            net.spikes[step.emits] = _Map(words, height, width)
        net.layer(step.name).seconds += time.perf_counter() - begin


class _AttendLayer:
    def __init__(self, step: AttendStep) -> None:
        self.step = step
        panels = words_for(step.channels)
        self.first = self.last = np.zeros(panels, np.uint64)
        if step.dilation_heads is not None:
            self.first, self.last = _head_edges(step.channels, step.dilation_heads)

    def __call__(self, net: _Pass) -> None:
        step = self.step
        q, k, v = (net.spikes[name] for name in (step.query, step.key, step.value))
        tokens = q.height * q.width
        key, value = k.words, v.words
        if step.dilation_heads is None and step.gate is None:
            # In place: nobody else reads the query.
            attend.attend(q.words, key, value, tokens, q.words)
            net.spikes[step.name] = q
            return
        if step.dilation_heads is not None:
            key, value = self._dilated_pixels(net, k, "key"), self._dilated_pixels(net, v, "value")
        gate = self._gate(net, key, value, tokens)
        out = net.memory.get(step.name, q.words.shape, np.uint64)
        attend.mask(q.words, gate, tokens, out)
        if step.dilation_heads is not None:
            spread = net.memory.get("spread", q.words.shape, np.uint64)
            pool.dilate_tokens(out, tokens, spread)
            pool.dilate_channels(spread.reshape(-1, spread.shape[-1]), self.first, self.last)
            out[...] = spread
        net.spikes[step.name] = _Map(out, q.height, q.width)

    def _dilated_pixels(self, net: _Pass, s: _Map, name: str) -> Words:
        out = net.memory.get(f"dilated {name}", s.words.shape, np.uint64)
        pool.pool_spikes(s.words, s.height, s.width, 1, out)
        return out

    def _gate(self, net: _Pass, key: Words, value: Words, tokens: int) -> Words:
        step = self.step
        panels = key.shape[-1]
        gate = net.memory.get("gate", (net.images, GROUP, panels), np.uint64)
        if step.gate is None:
            # An OR over tokens of what is dilated over tokens is the OR itself: channels remain.
            attend.agree(key, value, tokens, gate)
            if step.dilation_heads is not None:
                pool.dilate_channels(gate.reshape(-1, panels), self.first, self.last)
            return gate
        if step.dilation_heads is not None:
            both = net.memory.get("both", key.shape, np.uint64)
            np.bitwise_and(key, value, out=both)
            key = net.memory.get("both dilated", key.shape, np.uint64)
            pool.dilate_tokens(both, tokens, key)
            pool.dilate_channels(key.reshape(-1, panels), self.first, self.last)
            value = key
        return self._counted_gate(net, step.gate, key, value, tokens, gate)

    def _counted_gate(
        self, net: _Pass, neuron: Neuron, key: Words, value: Words, tokens: int, gate: Words
    ) -> Words:
        channels = gate.shape[-1] * WORD
        counts = net.memory.get("agreements", (net.images, GROUP, channels), np.int64)
        attend.count_agreements(key, value, tokens, counts)
        v = np.zeros((net.images, channels), np.int64)
        if net.state is not None:
            v = net.state.setdefault(self.step.name, v)
        fired = np.zeros(counts.shape, np.bool_)
        theta = synapse.padded_to_words(neuron.theta, synapse.NEVER).astype(np.int64)
        readout.fire_sums(
            counts << FRACTION, theta, np.array(neuron.leak, np.int64), v, fired, net.steps
        )
        gate[...] = pack(fired)
        return gate


class _ReadoutLayer:
    def __init__(self, step: ReadoutStep) -> None:
        self.step = step
        self.leak = np.array(step.neuron.leak, np.int64)

    def __call__(self, net: _Pass) -> None:
        begin = time.perf_counter()
        step = self.step
        assert net.stream is not None
        panels, sites = net.stream.shape[:2]
        tokens = sites // net.images
        sums = net.memory.get("sums", (net.images, GROUP, panels * WORD), np.int64)
        readout.sum_tokens(net.stream, tokens, sums)
        inputs, classes = step.weight.shape
        v = np.zeros((net.images, inputs), np.int64)
        if net.state is not None:
            v = net.state.setdefault(step.name, v)
        spikes = np.zeros((net.images, GROUP, inputs), np.bool_)
        theta = summed(step.neuron, tokens).theta.astype(np.int64)
        readout.fire_sums(sums, theta, self.leak, v, spikes, net.steps)
        net.scores = np.zeros((GROUP, net.images, classes), np.int64)
        readout.add_classes(spikes, step.weight, step.bias, net.scores, net.steps)
        fired = int(spikes.sum(dtype=np.int64))
        net.layer(step.name).add(
            LayerStats(
                spikes=fired,
                additions=fired * classes,
                dense=net.steps * net.images * inputs * classes,
                rows=fired,
                row_bytes=classes * step.weight.itemsize,
                seconds=time.perf_counter() - begin,
            )
        )


_LAYERS: dict[type[Step], Any] = {
    ImageStep: _ImageLayer,
    PoolStep: _PoolLayer,
    FireStep: _FireLayer,
    StreamStep: _StreamLayer,
    AttendStep: _AttendLayer,
    ReadoutStep: _ReadoutLayer,
}


def _taps_in_sight(side: int) -> NDArray[np.int64]:
    """Return, for each pixel of a line, how many of a kernel's three taps lie inside it."""
    taps = np.full(side, 3)
    taps[0] -= 1
    taps[-1] -= 1
    return taps


def _head_edges(channels: int, heads: int) -> tuple[Words, Words]:
    size = channels // heads
    place = np.arange(channels) % size
    return pack(place == 0), pack(place == size - 1)
