"""The engine against every dense way to run the same network on the same CPU.

    python benchmarks/engine.py --model sdt_8_768 --threads 2 --batch 1

Weights are random and calibrated to the released model's firing rates (`calibrated.py`), the image
has the spectrum of photographs. All contenders run in turns in one process; medians are kept, and
the ratio of each round's neighbours. OpenVINO's rows need `pip install openvino nncf`.
Appends to benchmarks/results/engine.jsonl.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibrated import calibrated, natural_image
from dense import Dense
from torch import nn

import spikedriven as sd
from spikedriven.core.lif import reference as lif_reference
from spikedriven.core.synapse import reference as synapse_reference
from spikedriven.nn import neuron, synapse
from spikedriven.records import Record, append_records, this_command, this_commit, this_device

RESULTS = Path(__file__).parent / "results" / "engine.jsonl"
SHAPES = {
    "sdt_8_768": (sd.SDTConfig(8, 768, 1000), 224),
    "sdt_8_512": (sd.SDTConfig(8, 512, 1000), 224),
    "sdt_2_512_cifar": (sd.SDTConfig(2, 512, 10, stem_pool="0011"), 32),
    "sdt_2_256_cifar": (sd.SDTConfig(2, 256, 10, stem_pool="0011"), 32),
}
Run = Callable[[], Any]


def main() -> None:
    """Measure one model at one batch size and one number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SHAPES, default="sdt_8_768")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rivals", default="eager,nhwc,fused,bf16,compile,openvino,deployed")
    options = parser.parse_args()
    config, size = SHAPES[options.model]
    pixels = natural_image(options.batch, config.in_channels, size, 7)
    x = torch.from_numpy(pixels).float() / 255
    model = calibrated(config, x[:1])
    runs = contenders(model, pixels, x, options)
    for name, run in runs.items():  # compile, fill caches
        begin = time.perf_counter()
        run()
        print(f"{name}: first call {time.perf_counter() - begin:.1f} s", flush=True)
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    subject = f"{options.model} at {size}, T=4, batch {options.batch}, {options.threads} threads"
    context = {"torch": torch.__version__, "rounds": options.rounds, **versions()}
    records = []
    for name, times in seconds.items():
        median = statistics.median(times) * 1e3
        records.append(record("milliseconds", median, "ms", subject, name, options, context))
        line = f"{name:28s} {median:9.2f} ms (min {min(times) * 1e3:.2f})"
        for ours in ("engine int8", "engine int16"):
            ratio = statistics.median(
                theirs / own for theirs, own in zip(times, seconds[ours], strict=True)
            )
            if name != ours:
                line += f"   {ratio:6.2f} x {ours}"
                records.append(
                    record(f"times_slower_than_{ours.replace(' ', '_')}", ratio, "1", subject,
                           name, options, context)
                )  # fmt: skip
        print(line)
    append_records(RESULTS, records)


def contenders(
    model: sd.SpikeDrivenTransformer, pixels: np.ndarray, x: torch.Tensor, options: Any
) -> dict[str, Run]:
    """Return what runs, by name."""
    int8, int16 = sd.compile(model, "int8"), sd.compile(model, "int16")
    runs: dict[str, Run] = {
        "engine int8": lambda: int8.run(pixels, threads=options.threads),
        "engine int16": lambda: int16.run(pixels, threads=options.threads),
    }
    wanted = options.rivals.split(",")

    def inference(module: nn.Module, x: torch.Tensor) -> Run:
        def run() -> torch.Tensor:
            torch.set_num_threads(options.threads)  # the engine has set their common OpenMP
            with torch.inference_mode():
                return module(x)

        return run

    dense = Dense(model).eval()
    if "eager" in wanted:
        runs["PyTorch float32 eager"] = plain(inference(model, x))
    if "fused" in wanted:
        runs["our float model"] = inference(model, x)
    if "nhwc" in wanted:
        runs["PyTorch float32 folded NHWC"] = inference(dense, x)
    if "bf16" in wanted:
        half = Dense(model).eval().to(torch.bfloat16)
        runs["PyTorch bfloat16 NHWC"] = inference(half, x.bfloat16())
    if "compile" in wanted:
        runs["torch.compile float32"] = inference(torch.compile(dense), x)
        half = Dense(model).eval().to(torch.bfloat16)
        runs["torch.compile bfloat16"] = inference(torch.compile(half), x.bfloat16())
    if "openvino" in wanted:
        runs |= openvino(dense, x, options.threads, "")
    if "deployed" in wanted:
        runs |= deployed(options)
    return runs


def plain(run: Run) -> Run:
    """Run with the reference neurons and synapses: PyTorch's own operations only."""

    def with_plain() -> Any:
        fast = neuron.lif, neuron.norm_lif, synapse.spike_conv2d
        neuron.lif, neuron.norm_lif = lif_reference.lif, lif_reference.norm_lif
        synapse.spike_conv2d = synapse_reference.spike_conv2d
        try:
            return run()
        finally:
            neuron.lif, neuron.norm_lif, synapse.spike_conv2d = fast

    return with_plain


def openvino(module: nn.Module, x: torch.Tensor, threads: int, prefix: str) -> dict[str, Run]:
    """Return OpenVINO in float32 and quantised to int8 by NNCF, on the same input."""
    try:
        import nncf
        import openvino as ov
    except ImportError:
        print("openvino or nncf is not installed: its rows are left out")
        return {}
    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    with torch.no_grad():
        graph = ov.convert_model(module, example_input=x, input=[x.shape])
    calibration = nncf.Dataset([x.numpy()])
    small = nncf.quantize(graph, calibration, subset_size=1)
    runs = {}
    for name, program in ((f"{prefix}OpenVINO float32", graph), (f"{prefix}OpenVINO int8", small)):
        compiled = core.compile_model(program, "CPU", settings)
        request = compiled.create_infer_request()
        runs[name] = lambda request=request: request.infer([x.numpy()])
    return runs


def deployed(options: Any) -> dict[str, Run]:
    """Return what a user would deploy instead, in OpenVINO int8; their weights are random."""
    import timm

    x = torch.from_numpy(natural_image(options.batch, 3, 224, 7)).float() / 255
    runs = {}
    for name in ("resnet50", "deit_small_patch16_224"):
        rival = timm.create_model(name, pretrained=False).eval()
        both = openvino(rival, x, options.threads, f"{name} ")
        runs |= {key: run for key, run in both.items() if "int8" in key}
    return runs


def versions() -> dict[str, str]:
    """Return the versions of the rivals that were there."""
    found = {"numba": sys.modules["numba"].__version__}
    if "openvino" in sys.modules:
        found["openvino"] = sys.modules["openvino"].__version__
    return found


def record(
    metric: str, value: float, unit: str, subject: str, name: str, options: Any, context: Any
) -> Record:
    """Return one figure with its passport."""
    return Record(
        metric=metric,
        value=value,
        unit=unit,
        subject=f"{name}; {subject}",
        count=options.rounds,
        command=this_command(),
        commit=this_commit(),
        device=this_device(),
        context=context,
    )


if __name__ == "__main__":
    main()
