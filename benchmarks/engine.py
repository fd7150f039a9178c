"""The engine against every dense way to run the same network on the same CPU.

    python benchmarks/engine.py --model sdt_8_768 --threads 2 --batch 1
    python benchmarks/engine.py --table     # every row of the documents, one process after another

Weights are random and calibrated to the released model's firing rates (`calibrated.py`), the image
has the spectrum of photographs. All contenders run in turns in one process (`turns.py`); medians
are kept, and the ratio of each round's neighbours. OpenVINO's rows need `pip install openvino
nncf`, those of torch.compile a C++ compiler.

Before anything is timed: the dense network equals ours in float64, logit by logit, and each way to
run it is shown to fire in its first layer as ours does. Later layers of a random network are no
measure: it is chaotic, and one rounding becomes many spikes.
Records go to benchmarks/results/engine.jsonl.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrated import calibrated, natural_image
from dense import Dense, FirstSpikes
from numpy.typing import NDArray
from rivals import by_openvino, by_torch, has_openvino, versions
from turns import Bystanders, in_turns, ratio

import spikedriven as sd
from spikedriven.engine.stats import Stats
from spikedriven.nn.backend import use_backend
from spikedriven.records import Record, keep_records, measured

RESULTS = Path(__file__).parent / "results" / "engine.jsonl"
SHAPES = {
    "sdt_8_768": (sd.SDTConfig(8, 768, 1000), 224),
    "sdt_8_512": (sd.SDTConfig(8, 512, 1000), 224),
    "sdt_2_512_cifar": (sd.SDTConfig(2, 512, 10, stem_pool="0011"), 32),
    "sdt_2_256_cifar": (sd.SDTConfig(2, 256, 10, stem_pool="0011"), 32),
}
ALL = "eager,fused,nhwc,bf16,compile,openvino,deployed"
QUICK = "eager,nhwc,bf16,openvino,deployed"
# Model, threads, batch, rounds, rivals: what the documents show.
TABLE = (
    ("sdt_8_768", 2, 1, 7, ALL),
    ("sdt_8_768", 1, 1, 5, "eager,fused,nhwc,bf16,openvino,deployed"),
    # To convert it for eight images OpenVINO and NNCF take more than 20 GB.
    ("sdt_8_768", 2, 8, 3, "eager,bf16"),
    ("sdt_8_768", 1, 8, 3, "eager,bf16"),
    ("sdt_8_512", 2, 1, 7, ALL),
    ("sdt_2_512_cifar", 2, 1, 9, ALL),
    ("sdt_2_256_cifar", 2, 1, 9, ALL),
    ("sdt_2_256_cifar", 2, 8, 9, QUICK),
)
OURS = ("engine int8", "engine int16")
# In float64 the same sums in another order are 1e-15 apart, and no neuron is that near.
SAME_LOGITS = 1e-9
# Share of first-layer spikes that may differ: by the rounding of sums in float32, of weights and
# sums to 8 binary digits in bfloat16, and of weights and image to bytes.
FIRST_SPIKES = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 5e-2}
# Images whose first layer is compared.
COMPARED = 1


@dataclass
class Contender:
    """One way to classify the images."""

    name: str
    run: Callable[[], NDArray[Any]]
    """One call: logits [B, K]."""
    classes: int
    """K."""
    first: Callable[[], NDArray[Any]] | None = None
    """The spikes of its first layer, where they can be had."""
    precision: str = ""
    """Of its first layer: a key of `FIRST_SPIKES`."""


def main() -> None:
    """Measure one model at one batch size and one number of threads, or the whole table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="sdt_8_768")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rivals", default=ALL)
    parser.add_argument("--table", action="store_true", help="every row of the documents")
    options = parser.parse_args()
    if not options.table:
        measure(options)
        return
    begin = time.perf_counter()
    for row in TABLE:
        names = ("--model", "--threads", "--batch", "--rounds", "--rivals")
        words = [str(word) for pair in zip(names, row, strict=True) for word in pair]
        print(" ".join(words), flush=True)
        subprocess.run([sys.executable, __file__, *words], check=True)
    print(f"the table took {(time.perf_counter() - begin) / 60:.1f} minutes")


def measure(options: argparse.Namespace) -> None:
    """Check that all do the same work, then time them and keep the records."""
    config, size = SHAPES[options.model]
    pixels = natural_image(options.batch, config.in_channels, size, 7)
    x = torch.from_numpy(pixels).float() / 255
    model = calibrated(config, x[:1])
    check_dense(model, x)
    entrants, stats = contenders(model, pixels, x, options)
    mismatches = check(entrants, model, x)
    watch = Bystanders()
    seconds = in_turns({c.name: c.run for c in entrants}, options.rounds)
    others = watch.share()
    subject = f"{options.model} at {size}, T=4, batch {options.batch}, {options.threads} threads"
    shape = {"model": options.model, "size": size, "T": 4, "batch": options.batch}
    shape |= {"threads": options.threads} | versions()
    records: list[Record] = []
    for name, times in seconds.items():
        context: dict[str, Any] = {"contender": name, **shape}
        about = f"{name}; {subject}"
        median = statistics.median(times) * 1e3
        spread = {"least": min(times) * 1e3, "most": max(times) * 1e3, "others": others}
        if name in mismatches:
            spread["first_spikes_that_differ"] = mismatches[name]
        records.append(
            measured("milliseconds", median, "ms", about, len(times), **context, **spread)
        )
        line = f"{name:28s} {median:9.2f} ms (least {min(times) * 1e3:.2f})"
        for ours in OURS:
            if name != ours:
                times_slower = ratio(times, seconds[ours])
                line += f"   {times_slower:6.2f} x {ours}"
                metric = f"times_slower_than_{ours.replace(' ', '_')}"
                records.append(measured(metric, times_slower, "1", about, len(times), **context))
        print(line)
    for name, counted in stats.items():
        total = counted.total
        records.append(
            measured(
                "additions_per_image", total.additions / options.batch, "1", f"{name}; {subject}",
                options.batch, contender=name, skipped=total.skipped, **shape,
            )
        )  # fmt: skip
    # Only what ran in turns is compared: rows of an earlier run of this setting go.
    keep_records(RESULTS, records, instead_of=lambda r: r.subject.endswith(f"; {subject}"))


def contenders(
    model: sd.SpikeDrivenTransformer,
    pixels: NDArray[np.uint8],
    x: torch.Tensor,
    options: argparse.Namespace,
) -> tuple[list[Contender], dict[str, Stats]]:
    """Return who takes part, and what the engine counts."""
    wanted, threads, classes = options.rivals.split(","), options.threads, model.config.num_classes
    some = x[:COMPARED]
    entrants, stats = [], {}
    for name, weights in zip(OURS, ("int8", "int16"), strict=True):
        program = sd.compile(model, weights)

        def run(program: sd.Program = program) -> NDArray[np.float32]:
            return program.run(pixels, threads=threads)[0]

        stats[name] = program.run(pixels, threads=threads)[1]
        entrants.append(Contender(name, run, classes))

    def add(name: str, module: torch.nn.Module, first: torch.nn.Module, x: torch.Tensor) -> None:
        precision = "bfloat16" if x.dtype == torch.bfloat16 else "float32"
        alone = by_torch(first, x[:COMPARED], threads)
        entrants.append(Contender(name, by_torch(module, x, threads), classes, alone, precision))

    dense = Dense(model).eval()
    half = Dense(model).eval().to(torch.bfloat16)
    first, half_first = FirstSpikes(dense), FirstSpikes(half)
    if "eager" in wanted:
        eager = copy.deepcopy(model)
        use_backend(eager, "reference")  # PyTorch's own operations only
        run = by_torch(eager, x, threads)
        entrants.append(Contender("PyTorch float32 eager", run, classes))
    if "fused" in wanted:
        run = by_torch(model, x, threads)
        entrants.append(Contender("our float model", run, classes))
    if "nhwc" in wanted:
        add("PyTorch float32 folded NHWC", dense, first, x)
    if "bf16" in wanted:
        add("PyTorch bfloat16 NHWC", half, half_first, x.bfloat16())
    if "compile" in wanted:
        compiled = torch.compile
        add("torch.compile float32", compiled(dense), compiled(first), x)
        add("torch.compile bfloat16", compiled(half), compiled(half_first), x.bfloat16())
    if "openvino" in wanted and has_openvino():
        firsts = by_openvino(first, some, threads)
        for precision, run in by_openvino(dense, x, threads).items():
            name = f"OpenVINO {precision}"
            entrants.append(Contender(name, run, classes, firsts[precision], precision))
    if "deployed" in wanted and options.model in ("sdt_8_768", "sdt_8_512") and has_openvino():
        entrants += deployed(x, threads)
    return entrants, stats


def deployed(x: torch.Tensor, threads: int) -> list[Contender]:
    """Return what a user would deploy instead, in OpenVINO int8; their weights are random."""
    import timm

    entrants = []
    for name, shown in (("resnet50", "ResNet-50"), ("deit_small_patch16_224", "DeiT-S")):
        rival = timm.create_model(name, pretrained=False).eval()
        run = by_openvino(rival, x, threads)["int8"]
        entrants.append(Contender(f"{shown} OpenVINO int8", run, 1000))
    return entrants


@torch.inference_mode()
def check_dense(model: sd.SpikeDrivenTransformer, x: torch.Tensor) -> None:
    """Refuse to time a dense network that is not ours; on a corner of the image, to save time."""
    side = min(x.shape[-1], 64)
    corner = x[:1, :, :side, :side].double()
    ours = copy.deepcopy(model).double()
    difference = float((Dense(ours).double()(corner) - ours(corner)).abs().max())
    if not difference < SAME_LOGITS:
        raise SystemExit(f"the dense network's logits are off by {difference}; nothing is timed")


@torch.inference_mode()
def check(
    entrants: list[Contender], model: sd.SpikeDrivenTransformer, x: torch.Tensor
) -> dict[str, float]:
    """Call everyone twice; refuse who answers in another shape or fires otherwise.

    Returns:
        Name -> share of the first layer's spikes that differ from ours.
    """
    with sd.record_spikes(model) as spikes:
        model(x[:COMPARED])
    wanted = spikes["stem.image"].numpy()
    mismatches = {}
    for contender in entrants:
        name = contender.name
        begin = time.perf_counter()
        logits = contender.run()
        print(f"{name}: first call {time.perf_counter() - begin:.1f} s", flush=True)
        if logits.shape != (len(x), contender.classes) or not np.isfinite(logits).all():
            raise SystemExit(f"{name} answers {logits.shape} or NaN; nothing is timed")
        if contender.first is not None:
            got = contender.first() > 0.5
            mismatches[name] = float((got != wanted).mean())
            print(f"{name}: {mismatches[name]:.1e} of the first layer's spikes differ")
            if mismatches[name] > FIRST_SPIKES[contender.precision]:
                raise SystemExit(f"{name} fires otherwise in its first layer; nothing is timed")
    return mismatches


if __name__ == "__main__":
    main()
