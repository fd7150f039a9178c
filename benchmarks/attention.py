"""Spike-driven attention of the engine against one softmax attention, and its growth.

    python benchmarks/attention.py

The engine's operator (`engine/ops/attend`: `attend`, in one pass over the tokens, in place) answers
for all T = 4 steps; the rival
is one scaled_dot_product_attention of PyTorch in float32 with 8 heads, for one step's worth of
tokens. It is checked bit for bit against its definition before it is timed. Its time does not
depend on firing rates: every word is read.

Linear: time is fitted against tokens, and against channels, as a + b n; kept are the largest
relative residual of that line and the exponent of a power law.
Records go to benchmarks/results/attention.jsonl.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fit import line, power
from numpy.typing import NDArray
from turns import in_turns, ratio

from spikedriven.core.memory import zeros
from spikedriven.engine.bits import GROUP, Words, pack, unpack
from spikedriven.engine.ops.attend import cpu
from spikedriven.records import Record, keep_records, measured

RESULTS = Path(__file__).parent / "results" / "attention.jsonl"
WIDTH, HEADS, RATE = 768, 8, 0.1
TOKENS = (49, 196, 441, 784, 1764, 3136)
WIDTHS = (128, 256, 384, 512, 768, 1024)
RIVALLED = (196, 3136)
# Calls of microseconds are timed together: a clock's own time would show.
TOGETHER = 20


def main() -> None:
    """Measure against the rival, then the growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    records = []
    for threads in options.threads:
        for tokens in RIVALLED:
            records += against_softmax(tokens, threads, options.rounds)
    records += growth("tokens", {n: operator(n, WIDTH) for n in TOKENS}, options.rounds)
    records += growth("channels", {c: operator(196, c) for c in WIDTHS}, options.rounds)
    keep_records(RESULTS, records, instead_of=lambda r: "axis" in r.context)


def operator(tokens: int, width: int) -> Callable[[], Any]:
    """Return `TOGETHER` calls of the engine's operator on random spikes, after checking it."""
    rng = np.random.default_rng(tokens + width)
    q, k, v = (packed(rng.random((tokens, GROUP, width)) < RATE) for _ in range(3))
    bits = [unpack(words, width) for words in (q, k, v)]
    out = q  # in place, as the engine runs it: what is masked once stays as it is

    def once() -> None:
        cpu.attend(q, k, v, tokens, out)

    once()
    if not np.array_equal(unpack(out, width), bits[0] & (bits[1] & bits[2]).any(axis=0)):
        raise SystemExit("the operator is not q AND OR(k AND v); nothing is timed")

    def together() -> None:
        for _ in range(TOGETHER):
            once()

    return together


def packed(spikes: NDArray[np.bool_]) -> Words:
    """Pack spikes into words that begin on a cache line, as the engine has them."""
    words = pack(spikes)
    aligned = zeros(words.shape, np.uint64)
    aligned[...] = words
    return aligned


def against_softmax(tokens: int, threads: int, rounds: int) -> list[Record]:
    """Return times of both and their ratio."""
    torch.set_num_threads(threads)
    q, k, v = torch.randn(3, 1, HEADS, tokens, WIDTH // HEADS)

    def softmax() -> None:
        with torch.inference_mode():
            F.scaled_dot_product_attention(q, k, v)

    runs = {"softmax": softmax, "spikes": operator(tokens, WIDTH)}
    for run in runs.values():
        run()
    seconds = in_turns(runs, rounds)
    seconds["spikes"] = [time / TOGETHER for time in seconds["spikes"]]
    ratio_4 = ratio(seconds["softmax"], seconds["spikes"])
    about = f"{tokens} tokens, {WIDTH} channels, {threads} threads"
    context = {"tokens": tokens, "channels": WIDTH, "threads": threads, "torch": torch.__version__}
    print(
        f"{about}: T = 4 in {statistics.median(seconds['spikes']) * 1e6:.2f} us, one softmax "
        f"attention in {statistics.median(seconds['softmax']) * 1e3:.3f} ms: {ratio_4:.0f} times, "
        f"{GROUP * ratio_4:.0f} per step"
    )
    metric = "attention_microseconds"
    return [
        measured(
            metric, statistics.median(seconds["spikes"]) * 1e6, "us",
            f"engine, T=4, one thread at work; {about}", rounds, contender="engine", **context,
        ),
        measured(
            metric, statistics.median(seconds["softmax"]) * 1e6, "us",
            f"PyTorch float32 scaled_dot_product_attention; {about}", rounds,
            contender="softmax", **context,
        ),
        measured(
            "softmax_times_slower_than_sdsa", ratio_4, "1", f"T=4; {about}", rounds, **context
        ),
    ]  # fmt: skip


def growth(axis: str, runs: dict[int, Callable[[], Any]], rounds: int) -> list[Record]:
    """Return times along one axis, and the fit of a line and of a power."""
    seconds = in_turns({str(size): run for size, run in runs.items()}, rounds)
    sizes = list(runs)
    times = [statistics.median(seconds[str(size)]) / TOGETHER * 1e6 for size in sizes]
    fixed = "768 channels" if axis == "tokens" else "196 tokens"
    subject = f"engine's attention, T=4, by {axis}, {fixed}"
    records = [
        measured(
            "attention_microseconds", time, "us", f"{subject}: {size}", rounds, axis=axis, size=size
        )
        for size, time in zip(sizes, times, strict=True)
    ]
    offset, slope, residual = line(sizes, times)
    exponent = power(sizes, times)
    print(
        f"{subject}: {offset:.2f} us + {slope * 1e3:.3f} ns each, off by at most {residual:.1%}; "
        f"grows with the power {exponent:.3f}"
    )
    fitted = {"axis": axis, "offset": offset, "slope": slope}
    return [
        *records,
        measured("linear_fit_residual", residual, "1", subject, len(sizes), **fitted),
        measured("growth_exponent", exponent, "1", subject, len(sizes), axis=axis),
    ]


if __name__ == "__main__":
    main()
