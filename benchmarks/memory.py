"""Peak memory of the engine against PyTorch float32, for one network on the same images.

    python benchmarks/memory.py --model sdt_8_768 --batch 1

Each runs in a process of its own, which gets a file of weights and a file of images. Three figures:
what a run takes above the loaded network; that and the network, above the libraries; and the whole
process. Libraries are warm by then: a tiny network has run before. Sizes are Linux's, from /proc.
Records go to benchmarks/results/memory.jsonl.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikedriven.records import keep_records, measured

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"
METRICS = {
    "run_bytes": "above the loaded network",
    "network_bytes": "above the libraries",
    "process_bytes": "in all",
}
EAGER = "PyTorch float32 eager"
RUNS = 2
Run = Callable[[NDArray[np.uint8]], Any]


def main() -> None:
    """Measure everyone and keep the records, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sdt_8_768")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--files", nargs=3, metavar=("TINY", "NETWORK", "IMAGES"),
                        help=argparse.SUPPRESS)  # fmt: skip
    options = parser.parse_args()
    if options.files:
        print(json.dumps(peaks(*map(Path, options.files), options.threads)))
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, files in prepared(options, Path(folder)).items():
            words = [sys.executable, __file__, "--threads", str(options.threads), "--files", *files]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    subject = f"{options.model}, T=4, batch {options.batch}, {options.threads} threads"
    records = []
    for name, sizes in found.items():
        for metric, size in sizes.items():
            share = size / found[EAGER][metric]
            print(f"{name:24s} {size / 2**20:9.1f} MiB {METRICS[metric]:26s} {share:.3f} of eager")
            context = {"contender": name, "model": options.model, "batch": options.batch}
            records.append(
                measured(metric, size, "B", f"{name}; {subject}", RUNS, **context, of_eager=share)
            )
    keep_records(RESULTS, records)


def prepared(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Write weights and images; return each contender's files."""
    import torch
    from calibrated import calibrated, natural_image

    import spikedriven as sd
    from engine import SHAPES
    from spikedriven.models.weights import save_model

    config, size = SHAPES[options.model]
    pixels = natural_image(options.batch, config.in_channels, size, 7)
    np.save(folder / "images.npy", pixels)
    x = torch.from_numpy(pixels).float() / 255
    networks = {
        "tiny": sd.SpikeDrivenTransformer(sd.SDTConfig(1, 64, 10)).eval(),
        "whole": calibrated(config, x[:1]),
    }
    files = {}
    for weights in ("int8", "int16"):
        for name, model in networks.items():
            sd.compile(model, weights).save(folder / f"{name}-{weights}.spk")
        files[f"engine {weights}"] = [f"tiny-{weights}.spk", f"whole-{weights}.spk"]
    for name, model in networks.items():
        save_model(model, folder / f"{name}.safetensors")
    files[EAGER] = ["tiny.safetensors", "whole.safetensors"]
    return {
        name: [str(folder / file) for file in (*both, "images.npy")] for name, both in files.items()
    }


def peaks(tiny: Path, network: Path, images: Path, threads: int) -> dict[str, int]:
    """Return the three figures of this process, in bytes."""
    pixels = np.load(images)
    load = load_program if tiny.suffix == ".spk" else load_eager
    warm = load(tiny, threads)
    for _ in range(RUNS):
        warm(pixels[:, :, :32, :32])
    libraries = size_of_process("VmRSS")
    run = load(network, threads)
    loaded = size_of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for _ in range(RUNS):
        run(pixels)
    peak = size_of_process("VmHWM")
    return {
        "run_bytes": peak - loaded,
        "network_bytes": peak - libraries,
        "process_bytes": peak,
    }


def load_program(path: Path, threads: int) -> Run:
    """Return a call of the engine; torch is not imported."""
    from spikedriven.engine.plan import Program

    program = Program.load(path)
    assert program.engine  # laid out now
    return lambda pixels: program.run(pixels, threads=threads)


def load_eager(path: Path, threads: int) -> Run:
    """Return a call of PyTorch's own operations."""
    import torch
    from rivals import by_torch

    from spikedriven.models.weights import load_model
    from spikedriven.nn.backend import use_backend

    model = load_model(path).eval()
    use_backend(model, "reference")
    return lambda pixels: by_torch(model, torch.from_numpy(pixels).float() / 255, threads)()


def size_of_process(which: str) -> int:
    """Return a size of this process from Linux, in bytes: VmRSS now, VmHWM at its peak."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
