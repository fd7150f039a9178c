"""Writes the figures of the documents from the records, and draws docs/figures.

    python benchmarks/document.py

What stands between `<!-- records: NAME -->` and `<!-- end -->` is replaced by the table of that
name; the rest of a document is left alone. A test holds the documents to the records.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spikedriven.engine.bits import GROUP
from spikedriven.records import Record
from spikedriven.viz.figures import energy_curve, firing_rate, speed
from spikedriven.viz.gather import gather, of_newest_machine
from spikedriven.viz.report import FIGURES, name_of
from spikedriven.viz.theme import short, svg

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "engine.md",
    ROOT / "docs" / "gpu.md",
    ROOT / "docs" / "energy.md",
    ROOT / "docs" / "training.md",
)
PICTURES = ROOT / "docs" / "figures"
NOT_MEASURED = "*Not measured.*"
HEADLINE = "sdt_8_768 at 224, T=4, batch 1, 2 threads"
Records = Sequence[Record]


def main() -> None:
    """Rewrite documents and pictures."""
    records = gather([RESULTS])
    for path in DOCUMENTS:
        path.write_text(rendered(path.read_text(encoding="utf-8"), records), encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        path, selected = PICTURES / f"{name_of(figure)}.svg", figure.select(records)
        if not selected:
            path.unlink(missing_ok=True)
            continue
        picture = svg(figure.draw(selected), name_of(figure), figure.TITLE, alone=True)
        marked = picture.replace("<svg", f'<svg data-records="{fingerprint(selected)}"', 1)
        path.write_text(marked, encoding="utf-8")


def rendered(text: str, records: Records) -> str:
    """Return a document with its marked parts written anew."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{BLOCKS[match[2]](records)}\n\n<!-- end -->"

    return re.sub(r"(<!-- records: (\w+) -->).*?<!-- end -->", block, text, flags=re.DOTALL)


def fingerprint(records: Records) -> str:
    """Return what tells the records of a picture from others."""
    lines = [json.dumps(asdict(record), sort_keys=True) for record in records]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# ------------------------------------------------------------------ tables


def readme_speed(records: Records) -> str:
    """Return how many times slower each rival is, for the README."""
    found = of_setting(chosen(records, "times_slower_than_engine_int8"), HEADLINE)
    found.sort(key=lambda r: -r.value)
    rows = [[r.context["contender"], f"{r.value:.2f} times"] for r in found]
    return table(["against", "the engine, int8, is faster"], rows, found)


def targets(records: Records) -> str:
    """Return what was asked of SDT-8-768 and what was obtained."""
    rows, used = [], []
    for target in TARGETS:
        for r in chosen(records, target.metric):
            if r.subject == target.subject:
                value = float(r.context["of_eager"]) if target.metric == SHARED else r.value
                value *= target.times
                rows.append([target.what, *target.cells(value)])
                used.append(r)
    return table(["SDT-8-768, batch 1, 2 threads", "must", "aim", "measured", ""], rows, used)


SHARED = "network_bytes"
"""A target of memory is a share of PyTorch's."""


@dataclass(frozen=True)
class Target:
    """A figure that was asked for."""

    what: str
    metric: str
    subject: str
    must: float | None
    aim: float | None = None
    at_most: bool = False
    """Less is better."""
    times: int = 1
    """By how much the record is multiplied."""

    def cells(self, value: float) -> list[str]:
        """Return must, aim, measured, and the verdict."""

        def met(bound: float) -> bool:
            return value <= bound if self.at_most else value >= bound

        if self.must is not None and not met(self.must):
            verdict = "**missed**"
        elif self.aim is not None and met(self.aim):
            verdict = "aim met"
        elif self.must is None:
            verdict = "aim missed"
        else:
            verdict = "met" if self.aim is None else "must met"
        return [
            "" if self.must is None else f"{self.must:g}",
            "" if self.aim is None else f"{self.aim:g}",
            f"{value:,.0f}" if value >= 1000 else f"{value:.3g}",
            verdict,
        ]


_SDSA = "softmax_times_slower_than_sdsa"
_INT8, _INT16 = "times_slower_than_engine_int8", "times_slower_than_engine_int16"
TARGETS = (
    Target("int8, times faster than PyTorch float32 eager", _INT8,
           f"PyTorch float32 eager; {HEADLINE}", 15, 25),
    Target("int8, than PyTorch bfloat16 channels-last", _INT8,
           f"PyTorch bfloat16 NHWC; {HEADLINE}", 8, 12),
    Target("int8, than OpenVINO int8", _INT8, f"OpenVINO int8; {HEADLINE}", 3, 5),
    Target("int16, than PyTorch float32 eager", _INT16,
           f"PyTorch float32 eager; {HEADLINE}", 8, 14),
    Target("attention of all four steps, than one softmax attention of 196 tokens, one thread",
           _SDSA, "T=4; 196 tokens, 768 channels, 1 threads", 500),
    Target("the same, for each step", _SDSA, "T=4; 196 tokens, 768 channels, 1 threads", None, 2000,
           times=GROUP),
    Target("int8, network and run, share of PyTorch float32's memory", SHARED,
           "engine int8; sdt_8_768, T=4, batch 1, 2 threads", 0.5, 0.25, at_most=True),
    Target("int8, compiling at the first call, seconds", "first_call_seconds",
           "engine int8, empty cache", 10, at_most=True),
    Target("int8, first call from the cache, seconds", "first_call_seconds",
           "engine int8, warm cache", 1, at_most=True),
    Target("int16, share of sites at which it differs from the float model", "spike_mismatch",
           "engine int16; sdt_8_768 at 224, released rates", 2e-4, at_most=True),
    Target("int16, the same, of its worst layer", "worst_layer_spike_mismatch",
           "engine int16; sdt_8_768 at 224, released rates", 2e-4, at_most=True),
    Target("int8, share of sites at which it differs from the float model", "spike_mismatch",
           "engine int8; sdt_8_768 at 224, released rates", 2e-3, at_most=True),
    Target("int8, the same, of its worst layer", "worst_layer_spike_mismatch",
           "engine int8; sdt_8_768 at 224, released rates", 2e-3, at_most=True),
)  # fmt: skip


def milliseconds(records: Records) -> str:
    """Return the time of every contender in every setting, with its multiple of int8's."""
    found = speed.select(records)
    groups, slower = speed.settings(found), speed.ratios(found)
    names = dict.fromkeys(str(r.context["contender"]) for group in groups.values() for r in group)
    cells: dict[str, list[str]] = {name: [] for name in names}
    for group in groups.values():
        by_name = {str(r.context["contender"]): r for r in group}
        for name, row in cells.items():
            r = by_name.get(name)
            multiple = f" ({slower[r.subject]:.1f})" if r and r.subject in slower else ""
            row.append(f"{short(r.value)}{multiple}" if r else "")
    rows = [[name, *row] for name, row in cells.items()]
    return table(["ms (times int8's)", *groups], rows, found)


def memory(records: Records) -> str:
    """Return peak memory."""
    found = chosen(records, "run_bytes", "network_bytes", "process_bytes")
    sizes: dict[str, dict[str, Record]] = {}
    for r in found:
        sizes.setdefault(r.subject, {})[r.metric] = r
    rows = [
        [
            subject,
            *(_size(by_metric.get(m)) for m in ("run_bytes", "network_bytes", "process_bytes")),
        ]
        for subject, by_metric in sizes.items()
    ]
    heads = ["MiB at peak (share of eager's)", "run", "network and run", "whole process"]
    return table(heads, rows, found)


def _size(record: Record | None) -> str:
    if record is None:
        return ""
    return f"{record.value / 2**20:.0f} ({float(record.context['of_eager']):.2f})"


def first_call(records: Records) -> str:
    """Return how long kernels take to compile."""
    found = chosen(records, "first_call_seconds")
    return table(["first call", "seconds"], [[r.subject, f"{r.value:.2f}"] for r in found], found)


def attention(records: Records) -> str:
    """Return the attention operator beside a softmax attention."""
    found = chosen(records, _SDSA)
    rows = [[r.subject, f"{r.value:,.0f}", f"{GROUP * r.value:,.0f}"] for r in found]
    return table(["attention", "times faster than one softmax attention", "per step"], rows, found)


def crossovers(records: Records) -> str:
    """Return where a dense layer is faster, by layer."""
    found = [r for r in firing_rate.select(records) if r.metric == "crossover_rate"]
    kinds = list(dict.fromkeys((r.context["contender"], r.context["kind"]) for r in found))
    layers: dict[tuple[object, object], dict[object, str]] = {}
    for r in found:
        wins = "never" if r.value >= 1 else f"{r.value:.2f} to {float(r.context['until']):.2f}"
        cells = layers.setdefault((r.context["layer"], r.context["rival"]), {})
        cells[r.context["contender"], r.context["kind"]] = wins
    rows = [[*layer, *(cells.get(kind, "") for kind in kinds)] for layer, cells in layers.items()]
    heads = ["layer", "best dense", *(f"against {name}, {kind} spikes" for name, kind in kinds)]
    return table(heads, rows, found)


def growth(records: Records) -> str:
    """Return how near to straight lines the times are."""
    found = chosen(records, "linear_fit_residual", "growth_exponent")
    fits: dict[str, dict[str, float]] = {}
    for r in found:
        fits.setdefault(r.subject, {})[r.metric] = r.value
    rows = [
        [subject, f"{fit['linear_fit_residual']:.1%}", f"{fit['growth_exponent']:.2f}"]
        for subject, fit in fits.items()
    ]
    return table(["time of", "largest distance from a line", "power"], rows, found)


def parity(records: Records) -> str:
    """Return the share of sites (neurons x steps x images) that differ."""
    found = chosen(records, "spike_mismatch", "worst_layer_spike_mismatch")
    shares: dict[str, dict[str, Record]] = {}
    for r in found:
        shares.setdefault(r.subject, {})[r.metric] = r
    rows = []
    for subject, by_metric in shares.items():
        overall, worst = by_metric["spike_mismatch"], by_metric["worst_layer_spike_mismatch"]
        cells = [f"{overall.value:.1e}", f"{worst.value:.1e} ({worst.context['layer']})"]
        rows.append([subject, *cells])
    return table(["share of sites that differ", "all", "worst layer"], rows, found)


def trained(records: Records) -> str:
    """Return the time of a trained network's image by itself."""
    found = chosen(records, "milliseconds_per_image")
    rows = []
    for r in found:
        network = r.subject.partition("; ")[2]
        rival = next(o for o in found if o.subject == f"float; {network}")
        left_out = f"{float(r.context['skipped']):.1%}" if "skipped" in r.context else ""
        rows.append([r.subject, short(r.value), f"{rival.value / r.value:.1f}", left_out])
    heads = ["trained network", "ms", "times faster than float", "of the dense work left out"]
    return table(heads, rows, found)


def accuracy(records: Records) -> str:
    """Return test accuracy in floats and in integers."""
    found = chosen(records, "accuracy_by_weights", "agreement")
    found = [r for r in found if "weights" in r.context]
    agreement = {r.subject: f"{r.value:.2%}" for r in found if r.metric == "agreement"}
    rows = [
        [r.subject, f"{r.value:.4f}", r.count, agreement.get(r.subject, "")]
        for r in found
        if r.metric == "accuracy_by_weights"
    ]
    return table(["", "test accuracy", "images", "same answer as float"], rows, found)


def learned(records: Records) -> str:
    """Return what recipes for one CPU reach, beside what they aim at."""
    found = [r for r in records if r.subject in AIMS]
    found = [r for r in found if r.metric in ("test_accuracy", "train_seconds")]
    by_subject: dict[str, dict[str, list[float]]] = {}
    for r in found:
        by_subject.setdefault(r.subject, {}).setdefault(r.metric, []).append(r.value)
    rows = [
        [
            subject,
            ", ".join(f"{share:.4f}" for share in values["test_accuracy"]),
            AIMS[subject],
            ", ".join(f"{seconds:.0f}" for seconds in values["train_seconds"]),
        ]
        for subject, values in by_subject.items()
    ]
    return table(["", "test accuracy", "aim", "seconds of training"], rows, found)


AIMS = {
    "sdt_tiny on digits": "0.985 within 150 s",
    "sdt_tiny on fashion_mnist": "0.91 within an hour",
    "sdt_tiny on cifar10": "0.80 within two hours",
    "sdt_2_256_cifar on imagenette2-64": "0.75 within two hours",
}


def processes(records: Records) -> str:
    """Return what two processes train beside one."""
    found = chosen(
        records, "two_processes_share", "two_runs_share", "images_per_second", "start_seconds"
    )
    names = {
        "two_processes_share": "two processes over twice one (at least 0.9 wanted)",
        "two_runs_share": "two runs at once that share nothing, over twice one",
        "images_per_second": "images per second",
        "start_seconds": "seconds beside the steps, most of them to start",
    }
    rows = [[f"{names[r.metric]}; {r.subject}", f"{r.value:.3g}"] for r in found]
    return table(["", ""], rows, found)


def gpu_bytes(records: Records) -> str:
    """Return the bytes per image of each kind of unit, three ways."""
    found = [r for r in chosen(records, "bytes_per_image") if r.context["kind"] != "all"]
    return table(["MB per image: moved, kept", *GPU_WAYS], _ways(found), found)


def gpu_floor(records: Records) -> str:
    """Return what whole networks move and keep, and how long that takes at least."""
    found = [r for r in chosen(records, "bytes_per_image") if r.context["kind"] == "all"]
    rows = _ways(found, with_kind=False)
    floors = chosen(records, "floor_microseconds")
    for row in rows:
        mine = [r for r in floors if r.context["workload"] == row[0]]
        row += [f"{r.value:.0f}" for r in mine]
    cards = dict.fromkeys(f"us at least, {r.context['kind']}" for r in floors)
    return table(["MB per image: moved, kept", *GPU_WAYS, *cards], rows, found + floors)


GPU_WAYS = ("fewest", "ours", "one by one")


def _ways(found: Records, *, with_kind: bool = True) -> list[list[str]]:
    sizes: dict[str, dict[str, dict[str, float]]] = {}
    for r in found:
        load, way, kind, part = (str(r.context[k]) for k in ("workload", "way", "kind", "part"))
        row = sizes.setdefault(f"{load}, {kind}" if with_kind else load, {})
        cell = row.setdefault(way, {"moved": 0.0, "kept": 0.0})
        cell["kept" if part == "kept" else "moved"] += r.value / 1e6
    return [
        [name, *(f"{row[way]['moved']:.1f}, {row[way]['kept']:.1f}" for way in GPU_WAYS)]
        for name, row in sizes.items()
    ]


def gpu_speed(records: Records) -> str:
    """Return what was measured on a GPU."""
    metrics = (
        "training_images_per_second", "forward_images_per_second", "peak_bytes", "share_of_floor",
    )  # fmt: skip
    found = [r for r in chosen(records, *metrics) if "type" in r.context]
    rows: dict[str, dict[str, float]] = {}
    for r in found:
        rows.setdefault(r.subject, {})[r.metric] = r.value
    cells = [
        [
            subject,
            f"{row[metrics[0]]:.0f}",
            f"{row[metrics[1]]:.0f}",
            f"{row[metrics[2]] / 2**20:.0f}",
            f"{row[metrics[3]]:.2f}",
        ]
        for subject, row in rows.items()
    ]
    heads = ["contender", "training, images/s", "forward", "peak MiB", "of the bytes' floor"]
    return table(heads, cells, found)


def caption_of(figure: object) -> Callable[[Records], str]:
    """Return a block: a figure's picture and its caption."""

    def block(records: Records) -> str:
        selected = figure.select(records)  # type: ignore[attr-defined]
        if not selected:
            return NOT_MEASURED
        title, name = figure.TITLE, name_of(figure)  # type: ignore[attr-defined, arg-type]
        return f"![{title}](figures/{name}.svg)\n\n{figure.caption(selected)}"  # type: ignore[attr-defined]

    return block


def budgets(records: Records) -> str:
    """Return what each budget of additions leaves."""
    found = energy_curve.select(records)
    rows = []
    for curve, points in energy_curve.curves(found).items():
        for point in points:
            claimed = point.times >= energy_curve.CLAIMED
            rows.append(
                [
                    f"{curve}, {point.name}",
                    f"{point.values[energy_curve.ENERGY] * energy_curve.UJ_PER_MJ:.3g}",
                    f"1/{point.times:.1f}{', as claimed' if claimed else ''}",
                    f"{point.values[energy_curve.ACCURACY]:.4f}",
                ]
            )
    heads = ["network", "executed, uJ per image", "attention over the artificial one", "accuracy"]
    return table(heads, rows, found)


BLOCKS: dict[str, Callable[[Records], str]] = {
    block.__name__: block
    for block in (readme_speed, targets, milliseconds, memory, first_call, attention, crossovers,
                  growth, parity, accuracy, trained, budgets, learned, processes,
                  gpu_bytes, gpu_floor, gpu_speed)
} | {f"figure_{name_of(figure)}": caption_of(figure) for figure in FIGURES}  # fmt: skip


def chosen(records: Iterable[Record], *metrics: str) -> list[Record]:
    """Return the newest records of some metrics, of the machine that measured last."""
    return of_newest_machine(r for r in records if r.metric in metrics)


def of_setting(records: Iterable[Record], setting: str) -> list[Record]:
    """Return the records of one setting that name their contender."""
    return [r for r in records if r.subject.endswith(f"; {setting}") and "contender" in r.context]


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], made_from: Records) -> str:
    """Return a Markdown table and, below it, where its figures come from."""
    if not rows:
        return NOT_MEASURED
    lines = [heads, ["---"] * len(heads), *rows]
    made = dict.fromkeys((r.command, r.commit, r.device) for r in made_from)
    devices = "; ".join(dict.fromkeys(device for *_, device in made))
    commands = ", ".join(f"`{command}` at {commit}" for command, commit, _ in made)
    return "\n".join(
        [*("| " + " | ".join(map(str, line)) + " |" for line in lines), "",
         f"<sub>{devices}. {commands}.</sub>"]
    )  # fmt: skip


if __name__ == "__main__":
    main()
