"""The paper's energies recomputed from tables of firing rates, and a trained run's own counts.

    python benchmarks/energy.py [--run runs/digits]

Writes benchmarks/results/energy.jsonl anew (a run's records stay where no --run is given), and the
tables of docs/energy.md from it.
"""

import argparse
import re
from pathlib import Path

import torch

from spikedriven.data import make_loader
from spikedriven.energy.account import Estimate, ann, attention, energy
from spikedriven.energy.costs import TABLES
from spikedriven.energy.counts import Counts, counting
from spikedriven.energy.rates import list_rates, load_rates
from spikedriven.energy.shape import network
from spikedriven.models.registry import find_variant
from spikedriven.records import (
    Record,
    append_records,
    read_records,
    this_command,
    this_commit,
    this_device,
)
from spikedriven.train.evaluate import open_run_data
from spikedriven.train.run import Run

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "energy.jsonl"
DOCUMENT = ROOT / "docs" / "energy.md"
COUNTED = "counted"
TENSORS = {
    "input of attention": "attention.fire",
    "query (the paper's V_S)": "attention.query",
    "key (Q_S)": "attention.key",
    "value (K_S)": "attention.value",
    "gate": "attention.gate",
    "masked query (V_hat)": "attention.masked",
    "input of the MLP": "mlp.fire",
    "hidden layer of the MLP": "mlp.expand",
}


def main() -> None:
    """Charge every packaged table, and a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a trained run to count")
    options = parser.parse_args()
    kept = list(read_records(RESULTS)) if RESULTS.exists() else []
    kept = [] if options.run else [r for r in kept if r.subject.startswith(COUNTED)]
    records = [record for name in list_rates() for record in of_table(name)]
    records += of_run(options.run) if options.run else kept
    RESULTS.unlink(missing_ok=True)
    append_records(RESULTS, records)
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), records))


def of_table(name: str) -> list[Record]:
    """Charge a packaged table of rates."""
    rates = load_rates(name)
    size = rates.image_size
    assert rates.model is not None
    assert size is not None
    net = network(find_variant(rates.model).config, size, size)
    return charged(name, Estimate(network=net, rates=rates), rates.layers, rates.mean)


def of_run(folder: str) -> list[Record]:
    """Count a run on its test images."""
    run = Run.open(Path(folder))
    model = run.model()
    test = open_run_data(run, model.config, None).test
    with torch.inference_mode(), counting(model, mean=test.info.mean, std=test.info.std) as counts:
        for images, _ in make_loader(test, batch_size=128):
            model(images)
    recipe = run.recipe()
    name = f"{COUNTED}: {recipe.model.name} on {recipe.data.name}"
    return charged(name, counts, counts.rates, counts.rates.__getitem__)


def charged(name: str, counted: Counts | Estimate, layers: object, rate: object) -> list[Record]:
    """Return every figure of one subject."""
    net = counted.network
    assert net is not None
    images = counted.images if isinstance(counted, Counts) else 1
    values: dict[str, tuple[float, str]] = {}

    def put(metric: str, value: float, unit: str) -> None:
        values[metric] = value, unit

    for convention in ("published", "executed", "memory"):
        put(f"energy_{convention}", energy(counted, convention).total_mj, "mJ")
    put("energy_executed_repeated", energy(counted, image="repeated").total_mj, "mJ")
    put("energy_executed_int8", energy(counted, costs=TABLES["int8"]).total_mj, "mJ")
    put("energy_memory_int8", energy(counted, "memory", costs=TABLES["int8"]).total_mj, "mJ")
    for precision in ("float32", "int8"):
        put(f"energy_ann_{precision}", ann(counted, TABLES[precision]).total_mj, "mJ")
        total = ann(counted, TABLES[precision], memory=True).total_mj
        put(f"energy_ann_memory_{precision}", total, "mJ")
    put("energy_beside", energy(counted).beside_mj, "mJ")
    for convention in ("published", "executed"):
        of = attention(counted, convention)
        put(f"attention_e2_{convention}", of.e2_pj, "pJ")
        put(f"attention_e2_{convention}_project", of.e2_project_pj, "pJ")
        put(f"attention_ratio_{convention}", of.ratio, "1")
        put(f"attention_ratio_{convention}_project", of.ratio_project, "1")
        for part, mj in energy(counted, convention).by_part().items():
            put(f"{convention} {part}", mj, "mJ")
    put("attention_e1", of.e1_pj, "pJ")
    put("attention_e1_project", of.e1_project_pj, "pJ")
    depth = net.config.depth
    for tensor in TENSORS.values():
        every = [rate(f"blocks.{b}.{tensor}") for b in range(depth)
                 if f"blocks.{b}.{tensor}" in layers]  # fmt: skip
        put(f"rate {tensor}", sum(every) / len(every), "1")
    return [
        Record(
            metric=metric, value=value, unit=unit, subject=name, count=images,
            command=this_command(), commit=this_commit(), device=this_device(),
        )
        for metric, (value, unit) in values.items()
    ]  # fmt: skip


# ------------------------------------------------------------------ the document


def filled(document: str, records: list[Record]) -> str:
    """Return the document with its tables drawn from records."""
    tables = {"totals": totals, "parts": parts, "attention": ratios, "rates": rates}
    for name, draw in tables.items():
        begin, end = f"<!-- table: {name} -->", "<!-- end -->"
        pattern = re.compile(f"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
        document, found = pattern.subn(lambda m, d=draw: m[1] + d(records) + m[2], document)
        assert found == 1, name
    return document


def _value(records: list[Record], subject: str, metric: str) -> float:
    (record,) = [r for r in records if r.subject == subject and r.metric == metric]
    return record.value


def _subjects(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(record.subject for record in records))


def _titles(subjects: list[str]) -> list[str]:
    return [f"`{subject.removeprefix(f'{COUNTED}: ')}`" for subject in subjects]


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def totals(records: list[Record]) -> str:
    """Draw energies by convention, mJ."""
    subjects = _subjects(records)
    rows = {
        "published: Table 1, word for word": "energy_published",
        "executed, first layer at each of T steps": "energy_executed_repeated",
        "executed, first layer once": "energy_executed",
        "neurons, pools, stream: beside it": "energy_beside",
        "memory: all of it, with every read and write": "energy_memory",
        "same-shape ANN, float32": "energy_ann_float32",
        "same-shape ANN with memory, float32": "energy_ann_memory_float32",
        "executed, int8": "energy_executed_int8",
        "same-shape ANN, int8": "energy_ann_int8",
        "memory, int8": "energy_memory_int8",
        "same-shape ANN with memory, int8": "energy_ann_memory_int8",
    }
    shares = {
        "ANN over executed, float32": ("ann_float32", "executed"),
        "ANN over executed, int8": ("ann_int8", "executed_int8"),
        "ANN over spikes with memory, float32": ("ann_memory_float32", "memory"),
        "ANN over spikes with memory, int8": ("ann_memory_int8", "memory_int8"),
        "int8 ANN over float32 executed": ("ann_int8", "executed"),
    }
    return _table(
        ["mJ per image", *_titles(subjects)],
        [[title, *(_mj(_value(records, s, metric)) for s in subjects)]
         for title, metric in rows.items()]
        + [[title, *(f"{over(records, s, *metrics):.2f} times" for s in subjects)]
           for title, metrics in shares.items()],
    )  # fmt: skip


def over(records: list[Record], subject: str, above: str, below: str) -> float:
    """Return one energy over another."""
    upper = _value(records, subject, f"energy_{above}")
    return upper / _value(records, subject, f"energy_{below}")


def parts(records: list[Record]) -> str:
    """Draw energies by part for the paper's table, mJ."""
    subject = "paper_sdt_8_512_224"
    names = [r.metric.removeprefix("executed ") for r in records
             if r.subject == subject and r.metric.startswith("executed ")]  # fmt: skip
    return _table(
        ["mJ per image", "published", "executed"],
        [[name, *(_mj(_value(records, subject, f"{c} {name}")) for c in ("published", "executed"))]
         for name in names],
    )  # fmt: skip


def ratios(records: list[Record]) -> str:
    """Draw attention alone."""
    subjects = _subjects(records)
    rows = []
    for title, metric in (
        ("E1, float32 softmax attention (pJ)", "attention_e1"),
        ("E2 as published (pJ)", "attention_e2_published"),
        ("E2 as executed (pJ)", "attention_e2_executed"),
    ):
        row = [f"{_value(records, s, metric):.3g} ({_value(records, s, f'{metric}_project'):.3g})"
               for s in subjects]  # fmt: skip
        rows.append([title, *row])
    for convention in ("published", "executed"):
        name = f"attention_ratio_{convention}"
        row = [f"{_value(records, s, name):.1f} ({_value(records, s, f'{name}_project'):.1f})"
               for s in subjects]  # fmt: skip
        rows.append([f"E1/E2 as {convention}", *row])
    return _table(["per block (with the output projection)", *_titles(subjects)], rows)


def rates(records: list[Record]) -> str:
    """Draw firing rates, means over blocks and steps."""
    subjects = _subjects(records)
    return _table(
        ["mean over blocks and steps", *_titles(subjects)],
        [[title, *(f"{_value(records, s, f'rate {tensor}'):.4f}" for s in subjects)]
         for title, tensor in TENSORS.items()],
    )  # fmt: skip


def _mj(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


if __name__ == "__main__":
    main()
