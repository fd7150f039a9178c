"""The page: whole, valid, and in need of nothing else."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from tests.helpers.recorded import EVERYTHING, SPEED

from spikedriven.cli.main import main
from spikedriven.errors import DataError
from spikedriven.records import append_records
from spikedriven.viz.gather import gather
from spikedriven.viz.report import FIGURES, name_of, page

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Follows the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._read(attrs)

    def handle_startendtag(self, _tag, attrs):
        self._read(attrs)

    def _read(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "xlink:href", "src", "action", "data"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def test_every_tag_is_closed_and_every_id_is_unique():
    reader = read(page(EVERYTHING))
    assert len(reader.ids) == len(set(reader.ids))
    assert {name_of(figure) for figure in FIGURES} <= set(reader.ids)


def test_nothing_is_fetched_from_elsewhere():
    html = page(EVERYTHING)
    reader = read(html)
    assert reader.links
    assert all(link.startswith("#") and link[1:] in reader.ids for link in reader.links)
    # What is left of addresses are the names of the SVG namespaces, which nobody fetches.
    addresses = set(re.findall(r"https?://[^\"'\s)]*", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in html
    assert "<script" not in html


def test_the_page_has_colours_for_day_and_night():
    html = page(SPEED)
    assert "prefers-color-scheme:dark" in html
    assert html.count("--ink:") == 2


def test_every_record_stands_in_the_table_and_its_text_cannot_become_markup():
    hostile = replace(SPEED[0], subject="<script>alert(1)</script>", value=0.125)
    reader = read(page([*EVERYTHING, hostile]))
    assert "<script>alert(1)</script>" in reader.text
    assert "0.125" in reader.text
    assert f"All {len(EVERYTHING) + 1} records" in reader.text


def test_a_page_of_nothing_is_refused():
    with pytest.raises(DataError, match="run a benchmark first"):
        page([])


def _with(**wrong):
    return json.dumps(asdict(SPEED[0]) | wrong).encode()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.csv", b"epoch,step,accuracy\n0,1,much\n", "has the accuracy 'much'"),
        ("metrics.csv", b"epoch,step,accuracy\n0,1.5,0.5\n", "has the step '1.5'"),
        ("metrics.csv", b"epoch,step,accuracy\n0,1,\xff\n", "cannot be read as CSV"),
        ("records.jsonl", b"\xff\xfe", "is not UTF-8 text"),
        ("records.jsonl", _with(value="abc"), 'has the value "abc"'),
        ("records.jsonl", _with(value=True), "has the value true"),
        ("records.jsonl", _with(count=3.5), "must be a whole number"),
        ("records.jsonl", _with(context=[]), "has the context []"),
        ("records.jsonl", b"9" * 5000, "is not JSON"),
    ],
)
def test_what_is_no_record_is_a_sentence(tmp_path, capsys, name, content, sentence):
    append_records(tmp_path / "records.jsonl", SPEED[:1])
    (tmp_path / name).write_bytes(content)
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "x.html")]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_records_are_gathered_from_files_folders_and_runs(tmp_path):
    append_records(tmp_path / "results" / "a.jsonl", SPEED[:1])
    append_records(tmp_path / "results" / "b.jsonl", SPEED[1:2])
    (tmp_path / "results" / "b_curve.csv").write_text(
        "accuracy,epoch,step,validation_accuracy\n0.5,0,9,\n,0,10,0.75\n"
    )
    append_records(tmp_path / "run" / "records.jsonl", SPEED[2:3])
    (tmp_path / "run" / "metrics.csv").write_text("epoch,step,validation_accuracy\n0,3,0.25\n")
    found = gather([tmp_path / "results", tmp_path / "run", tmp_path / "results" / "a.jsonl"])
    assert [(r.metric, r.value) for r in found] == [
        ("milliseconds", 10), ("milliseconds", 80), ("training_accuracy_at_step", 0.5),
        ("validation_accuracy_at_step", 0.75), ("milliseconds", 200),
        ("validation_accuracy_at_step", 0.25), ("milliseconds", 10),
    ]  # fmt: skip
    curve = found[2]
    assert (curve.subject, curve.command) == (SPEED[1].subject, SPEED[1].command)
    assert (curve.context["step"], curve.context["epoch"]) == (9, 0)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.jsonl", "."])
def test_a_place_without_records_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="holds no records"):
        gather([tmp_path / name])


def test_the_command_writes_the_page_and_says_what_is_in_it(tmp_path, capsys):
    records, output = tmp_path / "a.jsonl", tmp_path / "page.html"
    append_records(records, EVERYTHING)
    assert main(["report", str(records), "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    assert f"{len(EVERYTHING)} records; figures: speed, firing_rate" in shown
    read(output.read_text())
    assert main(["report", str(records), "-o", str(output), "--json"]) == 0
    assert f'"records": {len(EVERYTHING)}' in capsys.readouterr().out


def test_the_command_refuses_in_a_sentence(tmp_path, capsys):
    records = tmp_path / "a.jsonl"
    append_records(records, SPEED)
    for words, cure in (
        ([str(tmp_path / "no.jsonl")], "name benchmarks/results"),
        ([str(records), "-o", "/nowhere/page.html"], "choose another folder"),
    ):
        assert main(["report", *words]) == 2
        error = capsys.readouterr().err
        assert cure in error
        assert error.count("\n") == 1
