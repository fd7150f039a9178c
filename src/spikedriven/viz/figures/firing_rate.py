"""Time of a layer against its firing rate, and where a dense layer overtakes it."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Time against firing rate, layer by layer"
LINES = (
    ("engine int8", "independent", "fast", "-"),
    ("engine int8", "held", "fast", ":"),
    ("engine int16", "independent", "faithful", "-"),
    ("engine int16", "held", "faithful", ":"),
)
"""Contender, kind of spikes, colour, line."""


def select(records: Iterable[Record]) -> list[Record]:
    """Return the times and crossings of `benchmarks/crossover.py`, of one number of threads."""
    times = [r for r in records if r.metric == "layer_milliseconds" and "layer" in r.context]
    crossings = [r for r in records if r.metric == "crossover_rate" and "until" in r.context]
    found = of_newest_machine([*crossings, *times])
    return [r for r in found if r.context["threads"] == found[-1].context["threads"]]


def curve(records: Sequence[Record], contender: str, kind: str) -> tuple[list[float], list[float]]:
    """Return rates and milliseconds of one line of a layer."""
    points = sorted(
        (float(r.context["rate"]), r.value)
        for r in records
        if r.metric == "layer_milliseconds"
        and r.context["contender"] == contender
        and r.context.get("kind") == kind
    )
    return [rate for rate, _ in points], [time for _, time in points]


def best_dense(records: Sequence[Record]) -> Record | None:
    """Return the fastest dense rival of a layer."""
    dense = [r for r in records if r.metric == "layer_milliseconds" and "kind" not in r.context]
    return min(dense, key=lambda r: r.value, default=None)


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each layer; a ring marks where the dense rival overtakes."""
    with style():
        layers = _by_layer(records)
        columns = min(3, len(layers))
        figure = panels(len(layers), columns)
        for number, (layer, group) in enumerate(layers.items(), start=1):
            axes = figure.add_subplot(-(-len(layers) // columns), columns, number)
            _panel(axes, layer, group)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say, for each layer, where dense wins against int8 with independent spikes."""
    told = []
    for r in records:
        is_own = (r.context["contender"], r.context.get("kind")) == ("engine int8", "independent")
        if r.metric == "crossover_rate" and is_own:
            until = float(r.context["until"])
            wins = "never" if r.value >= 1 else f"from {r.value:.2f} to {until:.2f}"
            told.append(f"{r.context['layer']}: {wins}")
    return (
        "Milliseconds of a layer against the share of inputs that fire, T = 4; independent spikes "
        "(drawn lines) and spikes held over all steps (dotted). The rates at which the best dense "
        f"layer is faster than the engine in int8, spikes independent: {'; '.join(told)}."
    )


def _by_layer(records: Sequence[Record]) -> dict[str, list[Record]]:
    layers: dict[str, list[Record]] = {}
    for record in records:
        layers.setdefault(str(record.context["layer"]), []).append(record)
    return layers


def _panel(axes: Axes, layer: str, group: list[Record]) -> None:
    dense = best_dense(group)
    if dense is not None:
        label = "best dense layer"
        axes.axhline(dense.value, color=DAY["rival"], linestyle="--", label=label)
        axes.annotate(
            str(dense.context["contender"]),
            (1, dense.value),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=DAY["muted"],
        )
    for contender, kind, colour, line in LINES:
        rates, times = curve(group, contender, kind)
        if rates:
            label = f"{contender}, {kind} spikes"
            axes.plot(rates, times, line, color=DAY[colour], label=label)
        for r in group:
            is_own = (r.context["contender"], r.context.get("kind")) == (contender, kind)
            if r.metric == "crossover_rate" and is_own and 0 < r.value < 1 and dense is not None:
                axes.plot(r.value, dense.value, "o", mfc="none", ms=7, color=DAY[colour])
    axes.set_title(layer)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of inputs that fire", fontsize=8)
    axes.set_ylabel("ms", fontsize=8)
