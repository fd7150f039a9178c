"""`metrics.csv` grows by what is new, and holds every row whatever happens to a writing of it."""

import csv
import errno
import os

import pytest

from spikedriven.train import log
from spikedriven.train.log import Table


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_long_table_is_written_in_proportion_to_its_rows(tmp_path, monkeypatch):
    """Ten times the rows, ten times the bytes: were all written each time, a hundred times."""
    written = {}
    for count in (1_000, 10_000):
        table, sizes = Table(tmp_path / f"{count}.csv"), []

        def counted(columns, rows, *, header=False, sizes=sizes, original=log._csv):
            content = original(columns, rows, header=header)
            sizes.append(len(content))
            return content

        with monkeypatch.context() as patch:
            patch.setattr(log, "_csv", counted)
            for step in range(count):
                table.log_metrics({"loss": 0.5}, 100_000 + step)
            table.finalize("success")
        written[count] = sum(sizes)
        assert table.path.stat().st_size == sum(sizes)
        assert [row["step"] for row in rows(table.path)] == [str(100_000 + n) for n in range(count)]
    header = len("loss,step\r\n")
    assert written[10_000] - header == 10 * (written[1_000] - header)


def test_rows_from_before_a_new_column_and_from_before_a_stop_stay(tmp_path):
    table = Table(tmp_path / "metrics.csv")
    table.log_metrics({"loss": 1.0}, 0)
    table.save()
    table.log_metrics({"loss": 2.0}, 1)
    table.save()
    table.log_metrics({"accuracy": 0.5}, 1)
    table.save()
    assert [row["accuracy"] for row in rows(table.path)] == ["", "", "0.5"]
    again = Table(table.path, kept=2)
    again.log_metrics({"loss": 3.0}, 2)
    again.save()
    again.log_metrics({"loss": 4.0}, 3)
    again.save()
    assert again.path.read_bytes() == b"loss,step\r\n1.0,0\r\n2.0,1\r\n3.0,2\r\n4.0,3\r\n"
    assert table.rows[2] == {"accuracy": 0.5, "step": 1}


@pytest.mark.parametrize("step", [1, 2])
def test_a_writing_that_failed_half_way_is_made_up_for_by_the_next(tmp_path, monkeypatch, step):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = Table(tmp_path / "metrics.csv")
    for number in range(3):
        table.log_metrics({"loss": float(number)}, number)
        if number == step:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(OSError, match="No space"):
                    table.save()
        table.save()
    assert [row["loss"] for row in rows(table.path)] == ["0.0", "1.0", "2.0"]
