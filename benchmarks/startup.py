"""Time of `import spikedriven` and of `spikedriven --help`, each in a fresh process.

    python benchmarks/startup.py

What Python itself needs to start is taken off. Keeps its records in
benchmarks/results/startup.jsonl.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "startup.jsonl"
ROUNDS = 15
COMMANDS = {
    "nothing": ["-c", "pass"],
    "import spikedriven": ["-c", "import spikedriven"],
    "spikedriven --help": ["-m", "spikedriven", "--help"],
}


def main() -> None:
    """Measure in turns and keep the medians."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    nothing = statistics.median(seconds.pop("nothing"))
    for name, times in seconds.items():
        value = statistics.median(times) - nothing
        print(f"{name}: {value:.3f} s above Python's own {nothing:.3f} s")
        record = measured("startup_seconds", value, "s", name, ROUNDS, python=nothing)
        keep_records(RESULTS, [record])


if __name__ == "__main__":
    main()
