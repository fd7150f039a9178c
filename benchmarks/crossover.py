"""Time against firing rate, layer by layer, and the rate from which on a dense layer is faster.

    python benchmarks/crossover.py --threads 2

The layers of SDT-8-768 at 224 x 224, T = 4, as the engine runs them: from packed spikes, lists of
events included, to packed spikes or to the membrane stream, neurons included. Spikes are drawn
independently at each rate, and also held for all four steps, which is the other extreme: a row of
weights is then added once for four spikes. Rivals are the same convolution of the four steps alone,
float32 spikes to float32 currents without neurons, in PyTorch float32 and bfloat16 (channels-last)
and in OpenVINO float32 and int8 (NNCF); the best of them counts. Their time has no rate.

Each layer is compared with its integer reference before it is timed.
Records go to benchmarks/results/crossover.jsonl.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fit import above
from numpy.typing import NDArray
from rivals import by_openvino, by_torch, has_openvino, versions
from torch import nn
from turns import in_turns

import spikedriven as sd
from spikedriven.core.memory import zeros
from spikedriven.engine import run as engine
from spikedriven.engine.bits import GROUP, pack, unpack
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.ops.pool.reference import pool
from spikedriven.engine.ops.synapse.reference import fire_current, stream_current
from spikedriven.engine.plan import FireStep, StreamStep
from spikedriven.engine.stats import Stats
from spikedriven.records import Record, keep_records, measured

RESULTS = Path(__file__).parent / "results" / "crossover.jsonl"
# Name of the layer in the network -> side of its input.
LAYERS = {
    "stem.second": 112,
    "stem.third": 56,
    "stem.fourth": 28,
    "stem.position": 14,
    "blocks.0.attention.query": 14,
    "blocks.0.mlp.expand": 14,
    "blocks.0.mlp.contract": 14,
}
RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
KINDS = ("independent", "held")
CHECKED_RATE = 0.1
# Seconds of a turn: there are fifty of them to a round and layer.
TURN = 0.1
Layer = FireStep | StreamStep


def main() -> None:
    """Measure every layer with both kinds of weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    options = parser.parse_args()
    torch.manual_seed(0)
    model = sd.SpikeDrivenTransformer(sd.SDTConfig(2, 768, 10)).eval()
    programs = {weights: sd.compile(model, weights) for weights in ("int8", "int16")}
    for name in options.layers:
        steps = {
            weights: next(s for s in program.steps if s.name == name)
            for weights, program in programs.items()
        }
        place = {"name": name, "threads": options.threads}
        keep_records(
            RESULTS,
            compare(steps, LAYERS[name], options),
            instead_of=lambda r, place=place: place.items() <= r.context.items(),
        )


def compare(steps: dict[str, Layer], side: int, options: argparse.Namespace) -> list[Record]:
    """Time one layer and its rivals in turns."""
    step = steps["int8"]
    kernel, _, inputs, outputs = step.weight.shape
    layer = f"{kernel}x{kernel}, {inputs} to {outputs}, {side} x {side}"
    shape = {"layer": layer, "name": step.name, "T": GROUP, "threads": options.threads}
    shape |= {"macs": GROUP * side * side * kernel * kernel * inputs * outputs}
    runs: dict[Any, Callable[[], Any]] = {}
    for weights, one in steps.items():
        check(one, drawn(CHECKED_RATE, "independent", side, inputs), options.threads)
        for kind in KINDS:
            for rate in RATES:
                s = drawn(rate, kind, side, inputs)
                runs[f"engine {weights}", kind, rate] = call(one, s, options.threads)
    dense = rivals(step, drawn(CHECKED_RATE, "independent", side, inputs), options.threads)
    runs |= {(name, "dense", 0.0): run for name, run in dense.items()}
    for run in runs.values():
        run()
        run()
    seconds = in_turns(runs, options.rounds, TURN)
    times = {key: statistics.median(values) * 1e3 for key, values in seconds.items()}
    records = []
    for (name, kind, rate), time in times.items():
        context = {"contender": name, **shape, **versions()}
        if kind == "dense":
            about = f"{name}; {layer}, {options.threads} threads"
        else:
            about = f"{name}; {layer}, {kind} spikes at {rate}, {options.threads} threads"
            context |= {"kind": kind, "rate": rate}
        records.append(measured("layer_milliseconds", time, "ms", about, options.rounds, **context))
    best = min(dense, key=lambda name: times[name, "dense", 0.0])
    limit = times[best, "dense", 0.0]
    print(f"{step.name}: {layer}; best dense: {best}, {limit:.2f} ms")
    for weights in steps:
        for kind in KINDS:
            ours = [times[f"engine {weights}", kind, rate] for rate in RATES]
            shown = " ".join(f"{time:.2f}" for time in ours)
            begin, end = above(limit, RATES, ours)
            wins = "never faster" if begin == 1 else f"faster from {begin:.2f} to {end:.2f}"
            print(f"  {weights}, {kind}: {shown} ms; dense is {wins}")
            about = f"engine {weights}; {layer}, {kind} spikes, {options.threads} threads"
            records.append(
                measured(
                    "crossover_rate", begin, "1", about, options.rounds, kind=kind, rival=best,
                    contender=f"engine {weights}", until=end, dense_milliseconds=limit, **shape,
                )
            )  # fmt: skip
    return records


def drawn(rate: float, kind: str, side: int, channels: int) -> NDArray[np.bool_]:
    """Return random spikes [T, 1, side, side, channels]."""
    rng = np.random.default_rng(side + channels)
    steps = GROUP if kind == "independent" else 1
    spikes = rng.random((steps, 1, side, side, channels)) < rate
    return np.broadcast_to(spikes, (GROUP, *spikes.shape[1:]))


def call(step: Layer, s: NDArray[np.bool_], threads: int) -> Callable[[], engine._Pass]:
    """Return a run of one layer as the engine lays it out."""
    side, channels = s.shape[2], s.shape[-1]
    packed = pack(s.reshape(GROUP, side * side, channels).swapaxes(0, 1))
    words = zeros(packed.shape, np.uint64)
    words[...] = packed
    memory = engine._Memory()

    def run(layer: Any, stream: NDArray[Any] | None) -> engine._Pass:
        net = engine._Pass(1, GROUP, memory, None, False, Stats(), stream=stream)
        net.spikes[step.source] = engine._Map(words, side, side)
        memory.listed = ""  # the lists are part of the layer
        with engine._threads(threads):
            layer(net)
        return net

    layer, stream = engine._LAYERS[type(step)](step), None
    if isinstance(step, StreamStep) and not step.begins:
        # Somebody must have begun what this layer adds to; that it grows with every call costs
        # no time.
        stream = run(engine._LAYERS[StreamStep](replace(step, begins=True)), None).stream
    return lambda: run(layer, stream)


def check(step: Layer, s: NDArray[np.bool_], threads: int) -> None:
    """Refuse to time a layer that does not fire as its integer reference does."""
    if isinstance(step, FireStep):
        name, i = step.name, fire_current(s, step)
    else:
        step = replace(step, begins=True)
        name, i = step.emits, stream_current(s, step)
        i = pool(i) if step.pool else i
    wanted = fire(i, np.zeros_like(i[0]), step.neuron)[0]
    got = unpack(call(step, s, threads)().spikes[name].words, wanted.shape[-1])
    if not np.array_equal(got.swapaxes(0, 1).reshape(wanted.shape), wanted):
        raise SystemExit(f"{step.name} is not its reference; nothing is timed")


def rivals(step: Layer, s: NDArray[np.bool_], threads: int) -> dict[str, Callable[[], Any]]:
    """Return the same convolution of the four steps, dense, by name."""
    kernel, _, inputs, outputs = step.weight.shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).eval()
    conv = conv.to(memory_format=torch.channels_last)
    x = torch.from_numpy(s[:, 0].astype(np.float32)).movedim(-1, 1)  # channels-last in memory
    half = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2).eval().to(torch.bfloat16)
    half = half.to(memory_format=torch.channels_last)
    found: dict[str, Callable[[], Any]] = {
        "PyTorch float32": by_torch(conv, x, threads),
        "PyTorch bfloat16": by_torch(half, x.bfloat16(), threads),
    }
    if has_openvino():
        for precision, run in by_openvino(conv, x.contiguous(), threads).items():
            found[f"OpenVINO {precision}"] = run
    return found


if __name__ == "__main__":
    main()
