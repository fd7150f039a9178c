"""The network on a GPU: bytes against their floor, images per second, peak memory.

    python benchmarks/gpu.py                  # on a GPU: the whole table, at most --minutes 25
    python benchmarks/gpu.py --official-path DIR      # with a checkout of the released code
    python benchmarks/gpu.py --bytes          # anywhere: the bytes, counted from shapes
    python benchmarks/gpu.py --tiny           # anywhere: the same on small networks; no record

First the gate: the tests of the kernels must pass on the device, and each contender must give the
same logits in float64 from the same weights; one that does not, or is not installed, is named with
its reason and not timed. A training step is forward, loss, backward and AdamW. Bytes moved are
those that `gpu_bytes.py` counts; a share of the copy bandwidth is those over time over what a copy
of a large tensor reaches; `of floor` is the time that the fewest bytes of a training step, in half
precision, would take at that bandwidth over the time that the step took. SpikingJelly 2 and the
released code need different versions of one package: `--only` runs some contenders in an
environment of their own, and records add up.
Records go to benchmarks/results/gpu.jsonl and gpu_bytes.jsonl.
"""

import argparse
import copy
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import contenders
import torch
import torch.nn.functional as F
from contenders import forget, logits_of, set_released_backend
from gpu_bytes import WAYS, WORD, joined, neuron, totals
from torch import Tensor, nn

import spikedriven as sd
from spikedriven.core.lif import Norm, norm_add_lif, norm_lif
from spikedriven.models.registry import find_variant
from spikedriven.nn.backend import use_backend
from spikedriven.records import Record, keep_records, measured, this_command, this_commit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GATE_TESTS = ("tests/core/test_triton.py", "tests/nn/test_backend.py")
# In float64: in float32 a rounding difference becomes a spike, and spikes spread.
GATE_BAND = 1e-9
# NVIDIA's data sheets, bytes per second.
CARDS = {"H100 SXM": 3.35e12, "H200": 4.8e12}
IMAGENET_IMAGES, IMAGENET_EPOCHS = 1_281_167, 310
SECONDS = 2.0
"""How long a figure is measured, after three steps of warming up."""
TYPES = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """A network, a size of images and a batch."""

    name: str
    config: sd.SDTConfig
    size: int
    batch: int


def _named(variant: str, size: int, batch: int) -> Workload:
    return Workload(f"{variant} at {size}", find_variant(variant).config, size, batch)


WORKLOADS = [
    _named("sdt_2_512_cifar", 32, 256),
    _named("sdt_8_512", 224, 64),
    _named("sdt_8_768", 224, 32),
]
TINY = [
    Workload("tiny at 8", sd.SDTConfig(1, 16, 10, num_steps=2, stem_pool="0011", num_heads=2), 8, 2)
]


# ------------------------------------------------------------------ contenders


def ours(model: sd.SpikeDrivenTransformer, _options: argparse.Namespace) -> nn.Module:
    """Return our model with what `auto` takes."""
    return model


def ours_compiled(model: sd.SpikeDrivenTransformer, _options: argparse.Namespace) -> nn.Module:
    """Return the same in one graph, replayed without launches."""
    compiled: nn.Module = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    return compiled


def reference(model: sd.SpikeDrivenTransformer, _options: argparse.Namespace) -> nn.Module:
    """Return our model by its definitions."""
    use_backend(model, "reference")
    return model


def reference_compiled(model: sd.SpikeDrivenTransformer, _options: argparse.Namespace) -> nn.Module:
    """Return what `torch.compile` generates from the definitions: the fused kernels' rival."""
    use_backend(model, "reference")
    compiled: nn.Module = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    return compiled


def spikingjelly(model: sd.SpikeDrivenTransformer, _options: argparse.Namespace) -> nn.Module:
    """Return SpikingJelly 2's model, its neurons by Triton on a GPU."""
    return contenders.spikingjelly(model)


def spikingjelly_compiled(model: sd.SpikeDrivenTransformer, options: argparse.Namespace) -> Any:
    """Return the same under `torch.compile`."""
    return torch.compile(spikingjelly(model, options))


def spikingjelly_small(model: sd.SpikeDrivenTransformer, options: argparse.Namespace) -> nn.Module:
    """Return the same with its memory optimiser: every neuron checkpointed, inputs as bits."""
    theirs = spikingjelly(model, options)
    from spikingjelly.activation_based import memopt, neuron

    config = model.config
    device = next(model.parameters()).device
    image = torch.randn(1, config.in_channels, options.size, options.size, device=device)
    small: nn.Module = memopt.optimize_memory(
        theirs, (neuron.BaseNode,), lambda probed: probed(image), level=1
    )
    return small


def released(model: sd.SpikeDrivenTransformer, options: argparse.Namespace) -> nn.Module:
    """Return the released code's model with our weights, its neurons by CuPy on a GPU."""
    if options.official_path is None:
        raise ImportError("its folder is not given: --official-path DIR")
    return contenders.released(model, options.official_path, options.size)


CONTENDERS: dict[str, Callable[[sd.SpikeDrivenTransformer, argparse.Namespace], Any]] = {
    "ours": ours,
    "ours, compiled": ours_compiled,
    "reference": reference,
    "reference, compiled": reference_compiled,
    "released": released,
    "SpikingJelly 2": spikingjelly,
    "SpikingJelly 2, compiled": spikingjelly_compiled,
    "SpikingJelly 2, memory optimiser": spikingjelly_small,
}
COMPILED = [name for name in CONTENDERS if name.endswith("compiled")]


# ------------------------------------------------------------------ the gate


def gate(device: str) -> None:
    """Run the tests of the kernels on this device; nothing is timed where one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *GATE_TESTS]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"the kernels are not the definition on {device}; nothing is timed")


def prepared(name: str, load: Workload, options: argparse.Namespace, device: str) -> Any:
    """Return a contender that has shown that it computes the same network.

    Raises:
        ImportError: It is not installed.
        ValueError: Its logits differ.
    """
    torch.manual_seed(0)
    model = sd.SpikeDrivenTransformer(load.config).to(device)
    for module in model.modules():  # fresh weights are silent, and silence is easy to agree on
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.0, 1.0)
    options.size = load.size
    if name in COMPILED:  # one graph of operators that the gate's tests hold
        return CONTENDERS[name](model, options).train()
    theirs = CONTENDERS[name](copy.deepcopy(model), options).to(device)
    images = torch.randn(2, load.config.in_channels, load.size, load.size, device=device)
    definition = copy.deepcopy(model).double().eval()
    use_backend(definition, "reference")
    with torch.no_grad():
        wanted = definition(images.double())
        found = logits_of(theirs.double().eval(), images.double())
    forget(theirs)
    difference = float((wanted - found).abs().max())
    if not difference <= GATE_BAND:
        raise ValueError(f"its logits differ by {difference:.2e}")
    if name == "released" and device == "cuda":
        set_released_backend(theirs, "cupy")
    return theirs.float().train()


# ------------------------------------------------------------------ measuring


def seconds(step: Step, device: str, least: float) -> tuple[float, int]:
    """Return the mean time of a step, and of how many."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3 if device == "cuda" else 1):
        step()
    wait()
    begin, count = time.perf_counter(), 0
    while not count or time.perf_counter() - begin < least:
        step()
        wait()
        count += 1
    return (time.perf_counter() - begin) / count, count


def measure(
    model: nn.Module, load: Workload, kind: str, device: str, least: float
) -> dict[str, tuple[float, int]]:
    """Return images per second forward and in training, and the peak memory of a step."""
    images = torch.randn(load.batch, load.config.in_channels, load.size, load.size, device=device)
    labels = torch.randint(0, load.config.num_classes, (load.batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    scaler = torch.amp.GradScaler(device, enabled=kind == "fp16" and device == "cuda")
    autocast = torch.autocast(device, TYPES[kind] or torch.float32, enabled=TYPES[kind] is not None)

    def forward() -> None:
        with torch.no_grad(), autocast:
            logits_of(model, images)
        forget(model)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = F.cross_entropy(logits_of(model, images).float(), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        forget(model)

    found = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    time_of_step, count = seconds(train, device, least)
    found["training_images_per_second"] = load.batch / time_of_step, count
    if device == "cuda":
        found["peak_bytes"] = float(torch.cuda.max_memory_allocated()), count
    model.eval()
    time_of_pass, count = seconds(forward, device, least)
    found["forward_images_per_second"] = load.batch / time_of_pass, count
    model.train()
    return found


def copy_bandwidth(device: str, size: int) -> float:
    """Return how many bytes a second a copy moves, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return (
        2
        * size
        / seconds(lambda: target.copy_(source), device, SECONDS / 4 if device == "cuda" else 0.0)[0]
    )


def neuron_bandwidth(device: str, batch: int) -> dict[str, float]:
    """Return how many of the bytes that they must move the fused neurons move a second."""
    least = SECONDS / 4 if device == "cuda" else 0.0
    T, C, side = 4, 128, 56 if device == "cuda" else 4
    x = torch.randn(T, batch, side, side, C, device=device, dtype=torch.bfloat16)
    x = (x * 2 + 0.5).movedim(-1, 2).requires_grad_()
    ones = torch.ones(C, device=device)
    norm = Norm(
        weight=ones.clone().requires_grad_(), bias=ones.clone().requires_grad_(),
        running_mean=ones * 0, running_var=ones.clone(), training=True,
    )  # fmt: skip
    ds, u = torch.randn_like(x), torch.randn_like(x).requires_grad_()
    leaves = [x, norm.weight, norm.bias]
    sizes = x.numel(), x.numel()
    found = {}
    for name, run, counted, wanted in (
        ("norm, neuron", lambda: norm_lif(x, norm, T), neuron(*sizes, "ours"), leaves),
        ("norm, addition, neuron", lambda: norm_add_lif(x, norm, u), joined(sizes[0], "ours"),
         [*leaves, u]),
    ):  # fmt: skip
        forward, _ = seconds(run, device, least)
        results = run()
        back = partial(
            torch.autograd.grad, results, wanted,
            ds if isinstance(results, Tensor) else (ds, ds), retain_graph=True,
        )  # fmt: skip
        found[f"{name}, forward"] = counted.forward / forward
        found[f"{name}, backward"] = counted.backward / seconds(back, device, least)[0]
    return found


# ------------------------------------------------------------------ the tables


def count_bytes() -> None:
    """Count the bytes of every workload, print and keep them."""
    records = []
    for load in WORKLOADS:
        for way in WAYS:
            for kind, b in totals(load.config, load.size, load.batch, way).items():
                for part in ("forward", "backward", "kept"):
                    value = getattr(b, part)
                    records.append(_counted("bytes_per_image", value, "B", load, way, kind, part))
                if kind == "all" and way == "fewest":
                    for card, bandwidth in CARDS.items():
                        floor = (b.forward + b.backward) / bandwidth * 1e6
                        records.append(
                            _counted("floor_microseconds", floor, "us", load, way, card, "step")
                        )
                if kind == "all":
                    moved = (b.forward + b.backward) / 1e6
                    print(
                        f"{load.name:22s} {way:11s} {moved:9.1f} MB moved {b.kept / 1e6:8.1f} kept"
                    )
    keep_records(RESULTS / "gpu_bytes.jsonl", records, instead_of=lambda _record: True)


def _counted(
    metric: str, value: float, unit: str, load: Workload, way: str, kind: str, part: str
) -> Record:
    return Record(
        metric=metric, value=value, unit=unit, subject=f"{load.name}; {way}; {kind}; {part}",
        count=1, command=this_command(), commit=this_commit(), device="any: counted from shapes",
        context={"workload": load.name, "way": way, "kind": kind, "part": part,
                 "batch": load.batch, "word": WORD, "T": load.config.num_steps},
    )  # fmt: skip


def compare(
    options: argparse.Namespace, device: str, begin: float, bandwidth: float
) -> list[Record]:
    """Measure every contender on every workload and in every type, beside the floor of bytes.

    A row is kept as soon as it is measured: the card may be gone before the table ends.
    """
    records: list[Record] = []
    loads, least = (TINY, 0.0) if options.tiny else (WORKLOADS, SECONDS)
    names = options.only or [n for n in CONTENDERS if not (options.tiny and n in COMPILED)]
    print(
        f"{'workload':22s} {'type':5s} {'contender':33s} training/s  forward/s  peak MiB  of floor"
    )
    for load, kind, name in planned(loads, names):
        row = f"{load.name:22s} {kind:5s} {name:33s}"
        if time.perf_counter() - begin > 60 * options.minutes:
            print(f"{row} not measured: no time is left")
            continue
        try:
            model = prepared(name, load, options, device)
            found = measure(model, load, kind, device, least)
        except Exception as error:  # compilers fail in as many ways as there are contenders
            first = (str(error).splitlines() or [type(error).__name__])[0]
            print(f"{row} not measured: {first}")
            if name == "ours":
                raise SystemExit(
                    "ours is not the definition, or fails; nothing is timed"
                ) from error
            continue
        bytes_ = totals(load.config, load.size, load.batch, "fewest")["all"]
        floor = (bytes_.forward + bytes_.backward) / bandwidth  # seconds, for an image
        rate, count = found["training_images_per_second"]
        found["share_of_floor"] = rate * floor, count
        peak = found.get("peak_bytes", (float("nan"), 0))[0] / 2**20
        print(
            f"{row} {rate:10.1f} {found['forward_images_per_second'][0]:10.1f} {peak:9.0f} "
            f"{rate * floor:9.3f}",
            flush=True,
        )
        about = f"{name}; {load.name}, {kind}, batch {load.batch}"
        units = {"peak_bytes": "B", "share_of_floor": "1"}
        own = [
            measured(metric, value, units.get(metric, "1/s"), about, count, contender=name,
                     type=kind, workload=load.name, batch=load.batch, torch=torch.__version__)
            for metric, (value, count) in found.items()
        ]  # fmt: skip
        records += own
        if not options.tiny:
            keep(own)
        del model
        torch.compiler.reset()  # graphs hold memory
    return records


def keep(records: list[Record]) -> None:
    """Keep records of this card."""
    name = torch.cuda.get_device_name()
    keep_records(RESULTS / "gpu.jsonl", [replace(r, device=f"{name}; {r.device}") for r in records])


def planned(loads: list[Workload], names: list[str]) -> list[tuple[Workload, str, str]]:
    """Return the rows in the order in which they are measured: where time ends, the last fall out.

    What takes seconds comes first, then what compiles for a minute each, in half precision first.
    """
    rows = list(itertools.product(loads, TYPES, names))
    compiled = [row for row in rows if row[2] in COMPILED]
    compiled.sort(key=lambda row: list(reversed(TYPES)).index(row[1]))
    return [row for row in rows if row[2] not in COMPILED] + compiled


def projected(records: list[Record]) -> list[Record]:
    """Return how many days ImageNet would take at the measured rate of our best 8-768 step."""
    rates = [
        r for r in records
        if r.metric == "training_images_per_second"
        and r.context["workload"] == "sdt_8_768 at 224"
        and str(r.context["contender"]).startswith("ours")
    ]  # fmt: skip
    if not rates:
        return []
    best = max(rates, key=lambda r: r.value)
    one = IMAGENET_IMAGES * IMAGENET_EPOCHS / best.value / 86400
    about = "sdt_8_768, 310 epochs of ImageNet at 224, steps alone"
    return [
        measured("projected_days", one / cards, "d", f"{about}; {cards} cards", best.count,
                 contender=best.context["contender"], type=best.context["type"])
        for cards in (1, 8)
    ]  # fmt: skip


def main() -> None:
    """Count bytes, or pass the gate and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", action="store_true", help="count bytes from shapes, no more")
    parser.add_argument("--tiny", action="store_true", help="small networks; keeps no record")
    parser.add_argument("--official-path", type=Path, help="a checkout of the released code")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="these contenders alone")
    parser.add_argument("--minutes", type=float, default=25.0, help="rows begin until then")
    options = parser.parse_args()
    if options.bytes:
        count_bytes()
        return
    begin = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        raise SystemExit("there is no GPU; the table needs one: use --tiny or --bytes")
    if device == "cuda":
        gate(device)
    share = copy_bandwidth(device, 2**30 if device == "cuda" else 2**20)
    print(f"copy bandwidth {share / 1e9:.1f} GB/s")
    records = compare(options, device, begin, share)
    others = projected(records)
    for part, reached in neuron_bandwidth(device, 1 if options.tiny else 64).items():
        print(f"{part}: {reached / share:.2f} of it")
        about = f"{part}, T=4, 64 images of 128 x 56 x 56, bf16"
        others.append(measured("share_of_copy_bandwidth", reached / share, "1", about, 1))
    for record in others:
        if record.metric == "projected_days":
            print(f"{record.subject}: {record.value:.1f} days")
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes")
    if not options.tiny:
        keep(others)


if __name__ == "__main__":
    main()
