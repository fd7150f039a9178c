"""What accuracy costs: one network for each budget of additions."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Accuracy against executed energy"
ENERGY, ACCURACY = "energy_executed", "test_accuracy"
SHARE = "attention_share_executed"
CLAIMED = 87.2
"""How many times less attention costs than the artificial one: the paper's Table 4, 8-768."""
COLOURS = ("fast", "faithful", "other")
"""Of the numbers of steps, from the largest down."""
UJ_PER_MJ = 1e3


def select(records: Iterable[Record]) -> list[Record]:
    """Return energies, shares and accuracies of `benchmarks/energy_curve.py`."""
    listed = [r for r in records if "curve" in r.context and r.metric in (ENERGY, ACCURACY, SHARE)]
    whole = {r.subject for r in listed if r.metric == ENERGY}
    whole &= {r.subject for r in listed if r.metric == ACCURACY}
    whole &= {r.subject for r in listed if r.metric == SHARE}
    return of_newest_machine(r for r in listed if r.subject in whole)


@dataclass(frozen=True)
class Point:
    """One network."""

    budget: str
    """Share of the additions that it was allowed, or `none`."""
    num_steps: int
    """Time steps at which it is shown an image."""
    values: dict[str, float]
    """Metric -> value."""

    @property
    def times(self) -> float:
        """How many times less its attention costs than the artificial one."""
        share = self.values[SHARE]
        return 1 / share if share else math.inf

    @property
    def name(self) -> str:
        """Its steps and budget, for a row or a sentence."""
        return f"T = {self.num_steps}, budget {self.budget}"


def curves(records: Sequence[Record]) -> dict[str, list[Point]]:
    """Return curve -> its points, from the dearest down."""
    points: dict[str, tuple[str, Point]] = {}
    for record in records:
        of = record.context
        point = Point(str(of["budget"]), int(of["num_steps"]), {})
        _, point = points.setdefault(record.subject, (str(of["curve"]), point))
        point.values[record.metric] = record.value
    found: dict[str, list[Point]] = {}
    for curve, point in points.values():
        found.setdefault(curve, []).append(point)
    for line in found.values():
        line.sort(key=lambda point: -point.values[ENERGY])
    return found


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each curve, in it a line for each number of steps."""
    with style():
        panels_of = curves(records)
        figure = panels(len(panels_of), len(panels_of), height=1.25)
        for number, (curve, points) in enumerate(panels_of.items(), start=1):
            axes = figure.add_subplot(1, len(panels_of), number)
            steps = sorted({point.num_steps for point in points}, reverse=True)
            for num_steps, colour in zip(steps, cycle(COLOURS)):
                line = [point for point in points if point.num_steps == num_steps]
                axes.plot(
                    [point.values[ENERGY] * UJ_PER_MJ for point in line],
                    [point.values[ACCURACY] for point in line],
                    "o-", color=DAY[colour], label=f"T = {num_steps}",
                )  # fmt: skip
            claimed = [point for point in points if point.times >= CLAIMED]
            if claimed:
                axes.plot(
                    [point.values[ENERGY] * UJ_PER_MJ for point in claimed],
                    [point.values[ACCURACY] for point in claimed],
                    "o", color=DAY["ink"], fillstyle="none", markersize=9, markeredgewidth=1,
                    label=f"attention at 1/{CLAIMED} or less",
                )  # fmt: skip
            for point in points:
                place = (point.values[ENERGY] * UJ_PER_MJ, point.values[ACCURACY])
                axes.annotate(
                    point.budget, place, xytext=(0, 7), textcoords="offset points", fontsize=7,
                    ha="center",
                )  # fmt: skip
            axes.set_xscale("log")
            axes.margins(0.1, 0.15)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: _minor(value))
            axes.tick_params(which="both", labelsize=8)
            axes.set_title(curve)
            axes.set_xlabel("executed, uJ per image; at each point its budget", fontsize=8)
            axes.set_ylabel("test accuracy", fontsize=8)
            axes.legend(fontsize=7, loc="lower right")
        return figure


def _minor(value: float) -> str:
    """Return the label of a minor tick: 2 and 5 of each decade have one."""
    return f"{value:g}" if f"{value:.1e}"[:3] in ("2.0", "5.0") else ""


def caption(records: Sequence[Record]) -> str:
    """Say what each budget leaves."""
    told = []
    for curve, points in curves(records).items():
        ends = [
            f"{point.name}: {point.values[ACCURACY]:.4f} at "
            f"{point.values[ENERGY] * UJ_PER_MJ:.3g} uJ, attention 1/{point.times:.1f} of the "
            "artificial one"
            for point in points
        ]
        told.append(f"{curve}: {'; '.join(ends)}")
    return (
        "A network for each budget of synaptic additions: test accuracy against the energy of what "
        f"it executes, float32 at 45 nm. {'. '.join(told)}."
    )
