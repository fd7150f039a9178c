"""What reaches the paper is what was measured: the arrays handed to matplotlib."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from tests.helpers.recorded import (
    ACCURACY,
    ENERGY_CURVE,
    EVERYTHING,
    FIRING_RATE,
    FIRST_STEPS,
    LAYER,
    SCALING,
    SETTING,
    SPEED,
    STEP,
    TIME_TO_ACCURACY,
    TRAINING,
    TRAINING_SPEED,
)

from spikedriven.records import keep_records, read_records
from spikedriven.viz import theme
from spikedriven.viz.figures import (
    accuracy_steps,
    energy_curve,
    firing_rate,
    first_steps,
    scaling,
    speed,
    time_to_accuracy,
    training_curve,
    training_speed,
)
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.report import FIGURES, drawable, name_of

ELSEWHERE = "another CPU"


def drawn_lines(axes) -> dict[str, list[list[float]]]:
    return {
        str(line.get_label()): np.transpose(line.get_data()).tolist()
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def drawn(figure, records):
    return figure.draw(figure.select(records)).axes


def test_bars_are_the_recorded_milliseconds():
    (axes,) = drawn(speed, EVERYTHING)
    assert [bar.get_width() for bar in axes.patches] == [40, 80, 700, 200, 10]
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["40 ms", "80 ms", "700 ms  17.2x", "200 ms", "10 ms"]
    assert [label.get_text() for label in axes.get_yticklabels()][2] == "PyTorch float32 eager"
    assert axes.get_title(loc="left").replace("\n", ", ") == SETTING


def other_setting(factor, **context):
    return [
        replace(r, value=factor * r.value, subject=f"{r.subject} {context}",
                context={**r.context, **context})
        for r in SPEED if r.metric == "milliseconds"
    ]  # fmt: skip


def test_every_setting_has_bars_of_its_own_larger_networks_first():
    smaller, batch, thread = ({"model": "sdt_8_512"}, {"batch": 8}, {"threads": 1})
    mixed = [*other_setting(2, **smaller), *other_setting(3, **batch), *SPEED,
             *other_setting(4, **thread)]  # fmt: skip
    axes = drawn(speed, mixed)
    assert [one.patches[0].get_width() for one in axes] == [40, 160, 120, 80]
    assert [bar.get_width() for bar in axes[3].patches] == [80, 160, 1400, 400, 20]


def test_rivals_without_the_engine_are_no_comparison():
    assert speed.select([r for r in SPEED if r.context["contender"] != "engine int8"]) == []


def test_int8_int16_dense_and_other_networks_have_colours_of_their_own():
    (axes,) = drawn(speed, SPEED)
    colours = [to_hex(bar.get_facecolor()) for bar in axes.patches]
    assert colours == [theme.DAY[c] for c in ("fast", "faithful", "rival", "rival", "other")]


def test_lines_against_the_firing_rate_are_the_recorded_times_in_order():
    (axes,) = drawn(firing_rate, EVERYTHING)
    lines = drawn_lines(axes)
    assert lines["engine int8, independent spikes"] == [[0, 1], [0.5, 6], [1, 5]]
    assert lines["engine int8, held spikes"] == [[0, 1], [1, 3]]
    assert {y for _, y in lines["best dense layer"]} == {4}
    assert axes.get_title(loc="left") == LAYER
    rings = [line.get_data() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [(list(x), list(y)) for x, y in rings] == [([0.3], [4.0])]


def test_the_caption_says_where_dense_wins():
    assert f"{LAYER}: from 0.30 to 1.00" in firing_rate.caption(firing_rate.select(FIRING_RATE))
    never = [replace(r, value=1.0) if r.metric == "crossover_rate" else r for r in FIRING_RATE]
    assert f"{LAYER}: never" in firing_rate.caption(firing_rate.select(never))


def test_lines_against_steps_are_the_recorded_accuracies():
    (axes,) = drawn(accuracy_steps, EVERYTHING)
    lines = drawn_lines(axes)
    assert lines["int8, by confidence"] == [[1.25, 0.7], [1.75, 0.88]]
    assert lines["int8, fixed steps"] == [[1, 0.6], [2, 0.9]]
    assert {y for _, y in lines["float model, all steps"]} == {0.99}
    assert "0.8800 after 1.75 steps" in accuracy_steps.caption(accuracy_steps.select(ACCURACY))


def test_points_and_their_line_are_the_recorded_ones():
    (axes,) = drawn(scaling, EVERYTHING)
    assert drawn_lines(axes)["engine, T = 4"] == [[100, 3], [200, 5]]
    line = axes.get_lines()[0].get_data()
    assert [list(line[0]), list(line[1])] == [[100, 200], [1 + 0.02 * 100, 1 + 0.02 * 200]]
    assert "25.0%" in scaling.caption(scaling.select(SCALING))


def test_a_training_curve_is_the_recorded_one():
    (axes,) = drawn(training_curve, EVERYTHING)
    lines = drawn_lines(axes)
    assert lines["validation"] == [[10, 0.5], [20, 0.75]]
    assert lines["training batches"] == [[5, 0.25], [15, 0.625]]
    assert {y for _, y in lines["test, at the end"]} == {0.8125}
    assert "validation 0.7500, test 0.8125" in training_curve.caption(TRAINING)


def test_a_budget_is_a_point_of_its_curve(tmp_path):
    (axes,) = drawn(energy_curve, EVERYTHING)
    lines = drawn_lines(axes)
    assert lines == {
        "T = 4": [[500, 0.875], [250, 0.75]],
        "T = 1": [[125, 0.5]],
        "attention at 1/87.2 or less": [[125, 0.5]],
    }
    assert [text.get_text() for text in axes.texts] == ["none", "0.1", "0.1"]
    assert axes.get_title() or axes.get_title(loc="left") == "net on digits, attention"
    told = energy_curve.caption(energy_curve.select(ENERGY_CURVE))
    point = "T = 4, budget 0.1: 0.7500 at 250 uJ, attention 1/8.0 of the artificial one"
    assert point in told
    other = [replace(r, context={**r.context, "curve": "b"}, subject=f"b{r.subject}")
             for r in ENERGY_CURVE]  # fmt: skip
    assert len(drawn(energy_curve, [*ENERGY_CURVE, *other])) == 2
    # The newest record of each budget stays, beside those of the others.
    keep_records(tmp_path / "x.jsonl", ENERGY_CURVE)
    keep_records(tmp_path / "x.jsonl", ENERGY_CURVE[:4])
    assert len(list(read_records(tmp_path / "x.jsonl"))) == len(ENERGY_CURVE)


def test_training_is_shown_as_recorded_and_ours_comes_first():
    (axes,) = drawn(training_speed, EVERYTHING)
    assert [bar.get_width() for bar in axes.patches] == [64, 40]
    assert [text.get_text() for text in axes.texts] == ["64/s  1 MiB", "40/s  1/1.75  3 MiB"]
    assert axes.get_title(loc="left").replace("\n", ", ") == STEP
    told = training_speed.caption(training_speed.select(EVERYTHING))
    assert f"{STEP}: SpikingJelly 2 1.75 times as long, 3.00 times the memory" in told
    # A GPU's figures have the same metrics; ours alone is no comparison.
    assert training_speed.select([r for r in TRAINING_SPEED if "times" not in r.metric]) == []


def test_time_to_accuracy_is_shown_as_recorded_and_said_in_words():
    (axes,) = drawn(time_to_accuracy, EVERYTHING)
    assert drawn_lines(axes) == {
        "SpikingJelly 2": [[20, 0.5], [40, 0.75]],
        "spikedriven": [[10, 0.5], [20, 0.875]],
    }
    told = time_to_accuracy.caption(time_to_accuracy.select(TIME_TO_ACCURACY))
    assert told.endswith(
        "net on images, 2 threads: spikedriven 0.8 after 20 s, 0.8750 at the end, after 20 s; "
        "SpikingJelly 2 0.7500 at the end, after 40 s."
    )
    alone = [r for r in TIME_TO_ACCURACY if r.context["contender"] == "spikedriven"]
    assert time_to_accuracy.select(alone) == []


def test_first_steps_are_the_differences_from_the_released_codes_losses():
    (axes,) = drawn(first_steps, EVERYTHING)
    lines = drawn_lines(axes)
    assert lines["spikedriven"] == [[0, 0], [1, 0.5]]
    assert lines["released code, neighbouring weights 0"] == [[0, -0.25], [1, 0]]
    told = first_steps.caption(first_steps.select(FIRST_STEPS))
    assert "spikedriven 0.5000, released code, neighbouring weights 0 0.2500" in told
    assert "the loss itself is 2.250 at first" in told
    alone = [r for r in FIRST_STEPS if r.context["contender"] != "released code"]
    assert first_steps.select(alone) == []


def test_two_machines_are_never_in_one_picture_and_the_newest_figure_counts():
    older = [replace(r, device=ELSEWHERE, value=9.0) for r in SPEED]
    assert [r.value for r in speed.select([*older, *SPEED])] == [10, 80, 200, 700, 40, 17.25]
    assert {r.value for r in speed.select([*SPEED, *older])} == {9.0}
    alone = [replace(r, subject=f"{r.subject} there", device=ELSEWHERE) for r in SPEED]
    assert {r.device for r in speed.select([*alone, *SPEED])} == {SPEED[0].device}
    again = replace(SPEED[0], value=30.0)
    assert of_newest_machine([*SPEED, again])[0].value == 30.0
    assert of_newest_machine([]) == []


@pytest.mark.parametrize("figure", FIGURES, ids=name_of)
def test_what_was_not_measured_is_not_drawn(figure):
    others = [r for r in EVERYTHING if r not in figure.select(EVERYTHING)]
    assert name_of(figure) in drawable(EVERYTHING)
    assert name_of(figure) not in drawable(others)


@pytest.mark.parametrize("figure", FIGURES, ids=name_of)
def test_a_figure_is_the_same_file_each_time_and_its_colours_are_variables(figure):
    selected = figure.select(EVERYTHING)
    one, two = (theme.svg(figure.draw(selected), "x", "A <title>", alone=True) for _ in range(2))
    assert one == two
    assert 'aria-label="A &lt;title&gt;"' in one
    for colour, day in theme.DAY.items():
        # In the picture a colour stands only behind its variable, and once in the palette.
        assert one.count(day) == one.count(f"var(--{colour}, {day})") + 1
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', one)) <= {
        (name, "") if kind == "href" else ("", name)
        for name in re.findall(r'id="([^"]*)"', one)
        for kind in ("href", "url")
    }


def test_drawing_leaves_the_readers_own_style_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    speed.draw(speed.select(SPEED))
    assert dict(matplotlib.rcParams) == before


def test_pictures_need_neither_torch_nor_numba():
    code = (
        "import sys, spikedriven.viz.report, spikedriven.viz.gather\n"
        "print([m for m in ('torch', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
