"""A number keeps its passport."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spikedriven.errors import CheckpointError, DataError
from spikedriven.records import (
    Record,
    append_records,
    keep_records,
    measured,
    read_records,
    this_command,
    this_commit,
    this_device,
    write_whole,
)

RECORD = Record(
    metric="rate", value=0.25, unit="1", subject="x", count=4,
    command="python x.py", commit="abc", device="a CPU", context={"seed": 0},
)  # fmt: skip


def test_records_survive_the_file_in_order(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    append_records(path, [RECORD])
    append_records(path, [RECORD, RECORD])
    assert list(read_records(path)) == [RECORD] * 3


@pytest.mark.parametrize("line", ["{", "[]", '{"metric": "rate"}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    append_records(path, [RECORD])
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match="line 2"):
        list(read_records(path))


@pytest.mark.parametrize("place", ["pipe", ".", "folder", "/"])
def test_only_a_files_place_is_taken_by_a_file(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="a file must be able to take its place") as raised:
        write_whole(Path(place), b"new")
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
    assert Path("pipe").is_fifo()


def test_a_link_stays_one_and_the_file_behind_it_is_written(tmp_path):
    link, behind = tmp_path / "link", tmp_path / "behind"
    link.symlink_to(behind)
    for content in (b"first", b"second"):
        write_whole(link, content)
        assert link.is_symlink()
        assert behind.read_bytes() == content


def test_a_folder_without_a_checkout_has_an_unknown_commit(tmp_path):
    assert this_commit(tmp_path) == "unknown"
    assert "cores" in this_device()


def test_a_newer_record_takes_the_place_of_the_same_thing_and_of_nothing_else(tmp_path):
    path = tmp_path / "records.jsonl"
    others = [
        replace(RECORD, metric="m"),
        replace(RECORD, subject="y"),
        replace(RECORD, device="z"),
    ]
    keep_records(path, [RECORD, *others])
    newer = replace(RECORD, value=0.5, commit="def", command="python y.py", count=1, context={})
    keep_records(path, [newer])
    assert list(read_records(path)) == [*others, newer]


def test_a_comparison_made_anew_replaces_the_old_one_of_its_machine_as_a_whole(tmp_path):
    path = tmp_path / "records.jsonl"
    rival = replace(RECORD, subject="rival")
    elsewhere = replace(rival, device="another")
    alone = replace(RECORD, subject="alone")
    keep_records(path, [RECORD, rival, elsewhere, alone])
    newer = replace(RECORD, value=0.5)
    keep_records(path, [newer], instead_of=lambda r: r.subject in ("x", "rival"))
    assert list(read_records(path)) == [elsewhere, alone, newer]


def test_a_damaged_file_of_records_is_not_written_over(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("{\n")
    with pytest.raises(DataError, match="line 1"):
        keep_records(path, [RECORD])
    assert path.read_text() == "{\n"


def test_a_kept_file_has_the_permissions_of_any_new_file(tmp_path):
    keep_records(tmp_path / "records.jsonl", [RECORD])
    (tmp_path / "other").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("records.jsonl", "other")]
    assert modes[0] == modes[1]
    assert len(list(tmp_path.iterdir())) == 2  # nothing temporary is left


def test_a_measurement_carries_this_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/x.py", "--rounds", "3"])
    record = measured("rate", 0.25, "1", "x", 4, seed=0)
    assert record.command == "python benchmarks/x.py --rounds 3"
    assert record.commit == this_commit()
    assert record.device == this_device()
    assert (record.value, record.count, record.context) == (0.25, 4, {"seed": 0})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_a_processor_is_told_from_its_namesakes():
    if "cpu family" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no family")
    assert "(family " in this_device()


def test_a_command_tells_no_folder_of_the_machine(monkeypatch):
    words = ["/opt/tool/benchmarks/fit.py", "--data", "/home/me/data", "--run", "runs/a b", "x=1"]
    monkeypatch.setattr(sys, "argv", words)
    assert this_command() == "python benchmarks/fit.py --data data --run 'runs/a b' x=1"
    monkeypatch.setattr(sys, "argv", ["/opt/tool/src/spikedriven/__main__.py", "train", "digits"])
    assert this_command() == "spikedriven train digits"
