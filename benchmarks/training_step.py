"""One training step on the CPU against SpikingJelly 2's model of the same shape.

In an environment of its own, with both packages:

    python -m venv .bench && .bench/bin/pip install -e . spikingjelly==2.0.0
    .bench/bin/python benchmarks/training_step.py

Both models start from the same weights and see the same batch; first the logits must agree in
float64 (the gate), then rounds alternate in one process and the ratio of each pair of neighbours is
taken. Peak memory is that of a process of its own for each, above what it held before the first
whole step; it is read from Linux's /proc.
Appends to benchmarks/results/training_step.jsonl.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikedriven as sd
from spikedriven.records import Record, append_records, this_command, this_commit, this_device

RESULTS = Path(__file__).parent / "results" / "training_step.jsonl"
# In float64: in float32 a rounding difference becomes a spike, and spikes spread.
GATE_BAND = 1e-9


@dataclass(frozen=True)
class Workload:
    """A shape to train."""

    name: str
    width: int
    stem_pool: str
    image_size: int
    batch: int

    @property
    def config(self) -> sd.SDTConfig:
        """Two blocks, four steps, ten classes."""
        return sd.SDTConfig(2, self.width, 10, stem_pool=self.stem_pool)


WORKLOADS = [
    Workload("sdt_2_128 at 32, stem 0011", 128, "0011", 32, 32),
    Workload("sdt_2_256_cifar at 32", 256, "0011", 32, 32),
    Workload("sdt_2_384 at 64, stem 1111", 384, "1111", 64, 32),
]


def rival(config: sd.SDTConfig) -> nn.Module:
    """Return SpikingJelly's model, resetting its state after every call."""
    from spikingjelly.activation_based.model import SpikeDrivenTransformer

    return SpikeDrivenTransformer(
        T=config.num_steps,
        in_channels=config.in_channels,
        num_classes=config.num_classes,
        embed_dims=config.width,
        num_heads=config.num_heads,
        depths=config.depth,
        pooling_stat=config.stem_pool,
        detach_reset=True,
    )


def copy_weights(ours: sd.SpikeDrivenTransformer, theirs: nn.Module) -> None:
    """Give the rival our weights, in order of use; its extra stem biases become zero."""
    convolutions = [m for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    mine = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    for a, b in zip(mine, convolutions, strict=True):
        assert a.weight.shape == b.weight.shape
        b.weight.data.copy_(a.weight.data)
        if b.bias is not None:
            b.bias.data.zero_()
    theirs.head.load_state_dict(ours.head.state_dict())  # type: ignore[union-attr]


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Return one training step (forward, loss, backward) of either model."""
    is_rival = not isinstance(model, sd.SpikeDrivenTransformer)

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        logits: Tensor = model(images)
        F.cross_entropy(logits, labels).backward()
        if is_rival:
            from spikingjelly.activation_based import functional

            functional.reset_net(model)
        return logits.detach()

    return step


def prepared(workload: Workload) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Return both models with the same weights, and a batch."""
    torch.manual_seed(0)
    ours = sd.SpikeDrivenTransformer(workload.config)
    theirs = rival(workload.config)
    copy_weights(ours, theirs)
    side = workload.image_size
    images = torch.randn(workload.batch, 3, side, side)
    return ours, theirs, images, torch.randint(0, 10, (workload.batch,))


def seconds(step: Callable[[], Tensor]) -> float:
    """Return the wall time of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_memory(workload: Workload, who: str) -> float:
    """Return how many bytes two steps add to the peak of a fresh process."""
    command = [sys.executable, __file__, "--memory", who, "--workload", workload.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def high_water() -> int:
    """Return the largest resident size of this process so far, in bytes.

    Not getrusage's: that one counts the parent's size at the fork.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure_memory(workload: Workload, who: str) -> None:
    """Print the bytes that two steps add, in this process."""
    ours, theirs, images, labels = prepared(workload)
    model = ours if who == "ours" else theirs
    step_of(model, images[:2], labels[:2])()  # libraries, kernels and threads are not the model's
    before = high_water()
    step = step_of(model, images, labels)
    step()
    step()
    print(json.dumps(high_water() - before))


def compare(workload: Workload, rounds: int) -> list[Record]:
    """Measure one workload; the gate comes first."""
    ours, theirs, images, labels = prepared(workload)
    gate = [step_of(model.double(), images.double(), labels)() for model in (ours, theirs)]
    difference = float((gate[0] - gate[1]).abs().max())
    if difference > GATE_BAND:
        raise SystemExit(f"{workload.name}: logits differ by {difference}; nothing is timed")
    ours_step, theirs_step = (step_of(model.float(), images, labels) for model in (ours, theirs))
    for step in (ours_step, theirs_step):
        step()
    pairs = [(seconds(ours_step), seconds(theirs_step)) for _ in range(rounds)]
    ratios = [theirs_time / ours_time for ours_time, theirs_time in pairs]
    memory = {who: peak_memory(workload, who) for who in ("ours", "rival")}
    context: dict[str, float | int | str] = {
        "batch": workload.batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rival": "spikingjelly 2.0.0",
        "logit_difference": difference,
    }

    def record(metric: str, value: float, unit: str, **more: Any) -> Record:
        return Record(
            metric=metric,
            value=value,
            unit=unit,
            subject=workload.name,
            count=rounds,
            command=this_command(),
            commit=this_commit(),
            device=this_device(),
            context=context | more,
        )

    quartiles = statistics.quantiles(ratios, n=4)
    times = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return [
        record("training_speed_ratio", quartiles[1], "1", low=quartiles[0], high=quartiles[2]),
        record("training_images_per_second", workload.batch / times[0], "1/s"),
        record("rival_images_per_second", workload.batch / times[1], "1/s"),
        record(
            "training_memory_ratio",
            memory["ours"] / memory["rival"],
            "1",
            ours_bytes=memory["ours"],
            rival_bytes=memory["rival"],
        ),
    ]


def main() -> None:
    """Compare every workload, print and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", choices=("ours", "rival"), help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        chosen = next(w for w in WORKLOADS if w.name == options.workload)
        measure_memory(chosen, options.memory)
        return
    records = []
    for workload in WORKLOADS:
        measured = compare(workload, options.rounds)
        for record in measured:
            print(f"{record.subject}: {record.metric} {record.value:.3f} {record.unit}", flush=True)
        records += measured
    append_records(RESULTS, records)  # last: a changed file would make the commit look altered


if __name__ == "__main__":
    main()
