"""What counting costs: time of a forward pass with and without, and memory over a dataset.

    python benchmarks/counter.py

The two run in turns in one process with one thread; time is the process's own, which other
processes disturb least, and the ratio is the median over rounds; its quartiles stand beside it.
Memory is what the process has held at most after 100 batches, above what it had after 10. Replaces
the records of benchmarks/results/counter.jsonl.
"""

import resource
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import numba
import torch

import spikedriven as sd
from spikedriven.conform import enlivened
from spikedriven.energy.counts import counting
from spikedriven.records import Record, append_records, this_command, this_commit, this_device

RESULTS = Path(__file__).parent / "results" / "counter.jsonl"
# model, side of the image, batch, rounds
WORKLOADS = [
    ("sdt_tiny", 16, 1, 101),
    ("sdt_tiny", 16, 16, 21),
    ("sdt_2_512_cifar", 32, 1, 15),
    ("sdt_8_512", 224, 1, 5),
]


def main() -> None:
    """Measure every workload."""
    commit = this_commit()  # before the old records go
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    RESULTS.unlink(missing_ok=True)
    for name, side, batch, rounds in WORKLOADS:
        torch.manual_seed(0)
        model = sd.create_model(name)
        shape = (batch, model.config.in_channels, side, side)
        x = torch.randint(0, 256, shape).float() / 255
        enlivened(model, x)
        channels = model.config.in_channels
        subject = f"{name} at {side}, T=4, batch {batch}, 1 thread"
        for metric, bytes_as in (
            ("counting_time_ratio", {}),
            ("counting_bits_time_ratio", {"mean": (0.0,) * channels, "std": (1.0,) * channels}),
        ):
            ratios, plain = overhead(model, x, rounds, bytes_as)
            low, ratio, high = statistics.quantiles(ratios, n=4)
            print(
                f"{subject}: {plain * 1e3:.1f} ms, {metric} {ratio:.3f} ({low:.3f} to {high:.3f})"
            )
            keep(metric, ratio, "1", subject, rounds, commit, lower=low, upper=high)
        if (name, batch) == ("sdt_tiny", 16):
            grown = growth(model, x)
            print(f"{subject}: {grown} bytes more after 100 batches than after 10")
            keep("counting_memory_growth", grown, "byte", subject, 100, commit)


@torch.inference_mode()
def overhead(
    model: sd.SpikeDrivenTransformer, x: torch.Tensor, rounds: int, bytes_as: dict[str, tuple]
) -> tuple[list[float], float]:
    """Return time counted over time not counted, by round, and the latter's median in seconds.

    `bytes_as` holds mean and std, with which the image's bits are counted too.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(rounds + 1):
        for counted in (False, True):
            with counting(model, **bytes_as) if counted else nullcontext():
                begin = time.process_time()
                model(x)
                if round_ > 0:  # one warms up
                    seconds[counted].append(time.process_time() - begin)
    pairs = zip(seconds[True], seconds[False], strict=True)
    return [c / p for c, p in pairs], statistics.median(seconds[False])


@torch.inference_mode()
def growth(model: sd.SpikeDrivenTransformer, x: torch.Tensor) -> int:
    """Return by how many bytes the process's peak grows from batch 10 to batch 100."""
    with counting(model):
        for _ in range(10):
            model(x)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(90):
            model(x)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def keep(
    metric: str, value: float, unit: str, subject: str, count: int, commit: str, **spread: float
) -> None:
    """Append one record; `spread` is the quartiles of the rounds."""
    record = Record(
        metric=metric, value=value, unit=unit, subject=subject, count=count,
        command=this_command(), commit=commit, device=this_device(),
        context={"torch": torch.__version__, **spread},
    )  # fmt: skip
    append_records(RESULTS, [record])


if __name__ == "__main__":
    main()
