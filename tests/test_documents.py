"""What the documents claim is what the records say, and the scripts that make both are sound."""

import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import document, fit, turns

from spikedriven.train.recipe import list_recipes
from spikedriven.viz.gather import gather
from spikedriven.viz.report import name_of
from tests.helpers.recorded import ACCURACY, EVERYTHING, FIRING_RATE, SCALING, SPEED, record

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "docs" / "engine.md"


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line
    ]


@pytest.mark.parametrize("path", document.DOCUMENTS, ids=lambda path: path.name)
def test_a_document_holds_what_the_records_say(path):
    text = path.read_text()
    records = gather([document.RESULTS])
    assert document.rendered(text, records) == text, "run python benchmarks/document.py"
    assert "<!-- records: " in text


@pytest.mark.parametrize("figure", document.FIGURES, ids=name_of)
def test_a_picture_was_drawn_from_the_records(figure):
    selected = figure.select(gather([document.RESULTS]))
    path = document.PICTURES / f"{name_of(figure)}.svg"
    assert path.is_file() == bool(selected), "run python benchmarks/document.py"
    if selected:
        mark = re.search(r'data-records="(\w+)"', path.read_text())[1]
        assert mark == document.fingerprint(selected), "run python benchmarks/document.py"


def test_only_the_marked_parts_of_a_document_are_written():
    text = "before <!-- records: growth --> old <!-- end --> after <!-- end --> rest"
    new = document.rendered(text, SCALING)
    assert new.startswith("before <!-- records: growth -->\n\n| time of |")
    assert new.endswith("<!-- end --> after <!-- end --> rest")
    assert "old" not in new
    assert document.NOT_MEASURED in document.rendered(text, [])


def test_tables_hold_the_recorded_figures():
    assert cells(document.readme_speed(EVERYTHING))[1:] == [
        ["PyTorch float32 eager", "17.25 times"]
    ]
    assert cells(document.milliseconds(SPEED))[1:] == [
        ["engine int8", "40"],
        ["engine int16", "80"],
        ["PyTorch float32 eager", "700 (17.2)"],
        ["OpenVINO int8", "200"],
        ["DeiT-S OpenVINO int8", "10"],
    ]
    assert cells(document.crossovers(FIRING_RATE))[1] == [
        "1x1, 8 to 8, 14 x 14", "OpenVINO int8", "0.30 to 1.00",
    ]  # fmt: skip
    assert cells(document.growth(SCALING))[1][1:] == ["25.0%", "0.75"]
    assert cells(document.accuracy(ACCURACY))[1:] == [
        ["float; net on digits", "0.9900", "3", ""],
        ["engine int8; net on digits", "0.9800", "3", "99.50%"],
    ]
    alone = [
        record("milliseconds_per_image", 8.0, "float; net on digits, batch 1"),
        record("milliseconds_per_image", 2.0, "int8; net on digits, batch 1", skipped=0.875),
    ]
    assert cells(document.trained(alone))[2][1:] == ["2", "4.0", "87.5%"]
    memory = [
        record(metric, mib * 2**20, "engine int8; net", of_eager=share)
        for metric, mib, share in (("process_bytes", 300, 0.3), ("run_bytes", 40, 0.1),
                                   ("network_bytes", 180, 0.25))
    ]  # fmt: skip
    assert cells(document.memory(memory))[1][1:] == ["40 (0.10)", "180 (0.25)", "300 (0.30)"]
    parity = [
        record("spike_mismatch", 1.2e-4, "engine int16; net", layer="all"),
        record("worst_layer_spike_mismatch", 0.002, "engine int16; net", layer="stem.image"),
    ]
    assert cells(document.parity(parity))[1][1:] == ["1.2e-04", "2.0e-03 (stem.image)"]


def test_a_target_is_missed_met_or_surpassed():
    at_least = document.Target("speed", "m", "s", 15, 25)
    at_most = document.Target("memory", "m", "s", 0.5, 0.25, at_most=True)
    assert [at_least.cells(x)[-1] for x in (14.9, 15, 25)] == ["**missed**", "must met", "aim met"]
    assert [at_most.cells(x)[-1] for x in (0.6, 0.5, 0.2)] == ["**missed**", "must met", "aim met"]
    assert document.Target("x", "m", "s", 1).cells(2.0) == ["1", "", "2", "met"]


def test_a_table_says_where_its_figures_come_from():
    elsewhere = replace(SPEED[2], command="python y.py")
    text = document.milliseconds([SPEED[4], elsewhere])
    assert "a CPU. `python x.py` at abc, `python y.py` at abc." in text


def test_the_page_on_the_engine_runs_and_names_scripts_that_exist(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it saves a program
    (code,) = re.findall(r"```python\n(.*?)```", ENGINE.read_text(), flags=re.DOTALL)
    (tmp_path / "code.py").write_text(code)
    runpy.run_path("code.py")
    scripts = re.findall(r"python (benchmarks/\w+\.py)", ENGINE.read_text())
    assert len(set(scripts)) >= 9
    for script in scripts:
        assert (ROOT / script).is_file()


def test_the_readme_names_every_script_of_a_run_and_each_can_be_read():
    scripts = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "runs").glob("*.sh"))
    readme = (ROOT / "README.md").read_text()
    assert sorted(set(re.findall(r"runs/\w+\.sh", readme))) == scripts
    folders = []
    for script in scripts:
        text = (ROOT / script).read_text()
        assert subprocess.run(["sh", "-n", ROOT / script], check=False).returncode == 0
        assert f"{script} " in text or "$1" not in text  # how it is called
        named = re.findall(r"(?:spikedriven train|accuracy\.py) (\w+)", text)
        assert set(named) <= set(list_recipes())
        assert all((ROOT / path).is_file() for path in re.findall(r"benchmarks/\w+\.py", text))
        folders += re.findall(r"(?:--run |run=)(runs/\w+)", text) or [f"runs/{n}" for n in named]
    assert len(set(folders)) == len(folders)  # no script finds another's run in its folder


def test_lines_and_powers_are_found_again():
    sizes = np.array([1.0, 10, 100, 1000])
    offset, slope, residual = fit.line(sizes, 3 + 2 * sizes)
    assert (offset, slope) == pytest.approx((3, 2))
    assert residual == pytest.approx(0, abs=1e-9)
    assert fit.power(sizes, 5 * sizes**1.5) == pytest.approx(1.5)
    off = 3 + 2 * sizes
    off[-1] *= 1.5
    assert fit.line(sizes, off)[2] > 0.1


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([1, 2, 3], (1.0, 1.0)),
        ([5, 6, 7], (0.0, 1.0)),
        ([3, 5, 7], (0.25, 1.0)),
        ([3, 5, 3], (0.25, 0.75)),
        ([5, 3, 3], (0.0, 0.25)),
        ([4, 4, 4], (1.0, 1.0)),
    ],
)
def test_where_a_curve_exceeds_a_limit(times, wanted):
    assert fit.above(4, [0, 0.5, 1], times) == wanted


def test_rivals_take_turns_and_a_ratio_is_of_neighbours(monkeypatch):
    order = []
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(turns.time, "sleep", lambda _seconds: None)
    runs = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = turns.in_turns(runs, rounds=3)
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [0.5] * 3, "b": [0.5] * 3}
    assert turns.ratio([2.0, 9.0, 6.0], [1.0, 3.0, 3.0]) == 2.0


def test_what_others_take_of_the_processor_is_a_share_of_all_cores(monkeypatch):
    clock, used = iter([0.0, 2.0]), iter([10.0, 13.0])
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(turns, "_seconds_of_others", lambda: next(used))
    monkeypatch.setattr(turns.os, "cpu_count", lambda: 2)
    assert turns.Bystanders().share() == 3 / (2 * 2)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="/proc is Linux's")
def test_the_work_of_another_process_counts():
    work = "sum(range(2 * 10**7))"
    before = turns._seconds_of_others()
    done = subprocess.run(
        [sys.executable, "-c", f"import time; {work}; print(time.process_time())"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    # A tick of the kernel is 10 ms; it may be missed at either end.
    assert turns._seconds_of_others() - before > float(done.stdout) - 0.02


@pytest.mark.parametrize("figure", document.FIGURES, ids=name_of)
def test_every_title_fits_into_its_picture(figure):
    records = figure.select(gather([document.RESULTS]))
    if not records:
        pytest.skip("nothing was measured")
    drawn = figure.draw(records)
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        for title in (axes.title, axes._left_title):
            box = title.get_window_extent()
            assert 0 <= box.x0 <= box.x1 <= drawn.bbox.x1, title.get_text()
