"""Time that compiling the kernels takes: the first call of a fresh process.

    python benchmarks/first_call.py

Once with an empty folder for Numba's cache, and again with what the first process left there. What
a later call takes is subtracted; importing is not counted (`startup.py` has it). Kernels do not
depend on a network's size, so a small one stands for all.
Records go to benchmarks/results/first_call.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "first_call.jsonl"
SIDE = 32


def main() -> None:
    """Measure both kinds of weights, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--program", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        print(json.dumps(first_call(options.program)))
        return
    import spikedriven as sd

    model = sd.create_model("sdt_2_256_cifar", num_classes=10).eval()
    records = []
    for weights in ("int8", "int16"):
        seconds: dict[str, list[float]] = {"empty": [], "warm": []}
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "net.spk"
            sd.compile(model, weights).save(program)
            for round_number in range(options.rounds):
                cache = str(Path(folder) / f"cache {round_number}")
                for state in ("empty", "warm"):
                    seconds[state].append(in_a_process(program, cache))
        for state, times in seconds.items():
            value = statistics.median(times)
            print(f"{weights}, {state} cache: {value:.2f} s")
            subject = f"engine {weights}, {state} cache"
            context = {"least": min(times), "most": max(times)}
            records.append(
                measured("first_call_seconds", value, "s", subject, len(times), **context)
            )
    keep_records(RESULTS, records)


def in_a_process(program: Path, cache: str) -> float:
    """Return the seconds of a fresh process's first call above those of a later one."""
    words = [sys.executable, __file__, "--program", str(program)]
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout))


def first_call(path: Path) -> float:
    """Run a program twice and return the difference."""
    from spikedriven.engine.plan import Program

    import_module("spikedriven.engine.run")  # Numba with it: to import it is no compiling

    program = Program.load(path)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, SIDE, SIDE), np.uint8)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        program.run(pixels)
        times.append(time.perf_counter() - begin)
    return times[0] - times[1]


if __name__ == "__main__":
    main()
