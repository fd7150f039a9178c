"""docs/energy.md says what the records say, and the records what the package computes today."""

import importlib.util
import re
from pathlib import Path

import pytest

from spikedriven.records import read_records

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "energy.md").read_text()
RECORDS = list(read_records(ROOT / "benchmarks" / "results" / "energy.jsonl"))


def script():
    path = ROOT / "benchmarks" / "energy.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_energy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value(subject, metric):
    (record,) = [r for r in RECORDS if r.subject == subject and r.metric == metric]
    return record.value


def test_its_tables_are_drawn_from_the_records():
    assert script().filled(DOCUMENT, RECORDS) == DOCUMENT


def test_the_records_are_what_is_computed_today():
    benchmark = script()
    for name in ("paper_sdt_8_512_224", "released_sdt_8_768_224", "released_sdt_8_768_288"):
        for record in benchmark.of_table(name):
            assert record.value == pytest.approx(value(name, record.metric), rel=1e-12)


def test_its_sentences_say_what_the_records_say():
    text = " ".join(DOCUMENT.split())
    paper, low, high = (
        "paper_sdt_8_512_224", "released_sdt_8_768_224", "released_sdt_8_768_288",
    )  # fmt: skip

    def mj(subject, metric):
        return f"{value(subject, f'energy_{metric}'):.2f}"

    def ratio(subject, metric):
        return f"{value(subject, f'attention_ratio_{metric}'):.1f}"

    repeated, once = "executed_repeated", "executed"
    assert f"reading of 8-512 gives {mj(paper, 'published')}," in text
    assert (
        f"cost {mj(paper, repeated)} and {mj(low, repeated)} mJ ({mj(high, repeated)} at 288)"
        in text
    )
    assert f"{mj(paper, once)}, {mj(low, once)} and {mj(high, once)} mJ if once" in text
    assert (
        f"ratio is {ratio(paper, 'published')} for 8-512 and {ratio(low, 'published')} for 8-768"
        in text
    )
    assert f"is executed, it is {ratio(paper, 'executed')} for both" in text
    assert ratio(paper, "executed") == ratio(low, "executed")
    projected = [ratio(s, "published_project") for s in (paper, low)]
    assert f"{projected[0]}, {projected[1]} and {ratio(paper, 'executed_project')}." in text
    assert value(low, "executed mlp") > 5
    block = value(paper, "executed query, key, value") + value(paper, "executed attention")
    assert value(paper, "executed attention") < block / 1000
    over = script().over
    assert f"({over(RECORDS, paper, 'ann_int8', 'executed'):.2f} times)" in text
    assert f"win {over(RECORDS, paper, 'ann_int8', 'executed_int8'):.1f} times" in text
    assert f"{over(RECORDS, paper, 'ann_memory_int8', 'memory_int8'):.1f} times where" in text


def test_the_readmes_energies_are_the_recorded_ones():
    readme = (ROOT / "README.md").read_text()
    for start, subject in (
        ("| paper, SDT-8-512 at 224", "paper_sdt_8_512_224"),
        ("| released SDT-8-768 at 224", "released_sdt_8_768_224"),
        ("| released SDT-8-768 at 288", "released_sdt_8_768_288"),
    ):
        row = next(line for line in readme.splitlines() if line.startswith(start))
        metrics = ("energy_published", "energy_executed_repeated", "energy_executed")
        expected = [f"{value(subject, metric):.2f}" for metric in metrics]
        expected += [
            f"{value(subject, f'attention_ratio_{name}'):.1f}" for name in ("published", "executed")
        ]
        assert re.findall(r"[\d.]+", row.split("|")[2]) == expected
    counter = read_records(ROOT / "benchmarks" / "results" / "counter.jsonl")
    ratios = [r for r in counter if r.metric.endswith("time_ratio")]
    most = max(r.value for r in ratios)
    assert f"adds at most {(most - 1) * 100:.1f} %" in readme
    larger = max(r.value for r in ratios if "sdt_tiny" not in r.subject)
    assert f"at most\n{(larger - 1) * 100:.1f} % to that of larger networks" in readme


def test_its_commands_are_understood():
    from spikedriven.cli.main import parse

    lines = re.findall(r"^    (spikedriven [^#\n]+)", DOCUMENT, flags=re.MULTILINE)
    assert len(lines) == 8
    for line in lines:
        assert parse(line.split()[1:]).verb in ("energy", "audit", "conform", "train")
