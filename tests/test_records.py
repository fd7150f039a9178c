"""A number keeps its passport."""

import pytest

from spikedriven.errors import DataError
from spikedriven.records import Record, append_records, read_records, this_commit, this_device

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


def test_a_folder_without_a_checkout_has_an_unknown_commit(tmp_path):
    assert this_commit(tmp_path) == "unknown"
    assert "cores" in this_device()
