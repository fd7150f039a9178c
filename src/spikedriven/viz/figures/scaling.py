"""Time against size, with the straight line through it."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Time against tokens and channels"
TIMES = ("milliseconds", "attention_microseconds")
FIT = "linear_fit_residual"


def select(records: Iterable[Record]) -> list[Record]:
    """Return sizes, times and fits of `benchmarks/scaling.py` and `benchmarks/attention.py`."""
    fits = [r for r in records if r.metric == FIT]
    subjects = {r.subject for r in fits}
    points = [r for r in records if r.metric in TIMES and _line(r) in subjects]
    return of_newest_machine([*points, *fits])


def lines(records: Sequence[Record]) -> dict[str, tuple[list[float], list[float], Record]]:
    """Return subject -> sizes, times, fit."""
    found = {}
    for fit in records:
        if fit.metric == FIT:
            points = sorted(
                (float(r.context["size" if "size" in r.context else "tokens"]), r.value)
                for r in records
                if r.metric in TIMES and _line(r) == fit.subject
            )
            found[fit.subject] = ([size for size, _ in points], [time for _, time in points], fit)
    return found


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for the whole network, and one for the attention along each axis."""
    with style():
        groups: dict[tuple[str, str], list[tuple[list[float], list[float], Record]]] = {}
        for points in lines(records).values():
            context = points[2].context
            what = "whole network" if "contender" in context else "attention alone"
            groups.setdefault((what, str(context["axis"])), []).append(points)
        figure = panels(len(groups), len(groups), height=1.15)
        ordered = sorted(groups.items(), key=lambda item: item[0][0] != "whole network")
        for number, ((what, axis), group) in enumerate(ordered, start=1):
            _panel(figure.add_subplot(1, len(groups), number), what, axis, group)
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say how far from a line the times are."""
    told = [f"{subject}: {fit.value:.1%}" for subject, (*_, fit) in lines(records).items()]
    return (
        "Measured times and the straight line a + b n through each. Largest distance from it, as "
        f"a share of the time: {'; '.join(told)}."
    )


def _line(record: Record) -> str:
    return record.subject.rpartition(": ")[0]


def _panel(
    axes: Axes, what: str, axis: str, group: list[tuple[list[float], list[float], Record]]
) -> None:
    for sizes, times, fit in group:
        contender = str(fit.context.get("contender", "engine int8"))
        colour = DAY["other"]
        if contender.startswith("engine"):
            colour = DAY["faithful" if contender.endswith("int16") else "fast"]
        offset, slope = float(fit.context["offset"]), float(fit.context["slope"])
        axes.plot(sizes, [offset + slope * size for size in sizes], color=colour, linewidth=1)
        label = contender if what == "whole network" else "engine, T = 4"
        axes.plot(sizes, times, "o", color=colour, label=label)
    axes.set_title(what)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(axis, fontsize=8)
    axes.set_ylabel("ms" if what == "whole network" else "µs", fontsize=8)
    axes.legend(fontsize=8, loc="upper left")
