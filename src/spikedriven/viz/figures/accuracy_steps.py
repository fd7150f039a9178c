"""Accuracy against time steps: stopped at a fixed step, or when one class is sure enough."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Accuracy against time steps"
FIXED, CONFIDENT = "accuracy_after_steps", "accuracy_by_confidence"
COLOURS = {"int8": "fast", "int16": "faithful"}


def select(records: Iterable[Record]) -> list[Record]:
    """Return the curves of `benchmarks/engine_accuracy.py`, and the float model's accuracy."""
    found = [
        r
        for r in records
        if r.metric in (FIXED, CONFIDENT)
        or (r.metric == "accuracy_by_weights" and r.context.get("weights") == "float")
    ]
    return of_newest_machine(found) if any(r.metric == FIXED for r in found) else []


def curve(records: Sequence[Record], metric: str, weights: str) -> tuple[list[float], list[float]]:
    """Return mean steps and accuracy of one line."""
    points = sorted(
        (float(r.context["mean_steps"]), r.value)
        for r in records
        if r.metric == metric and r.context["weights"] == weights
    )
    return [steps for steps, _ in points], [share for _, share in points]


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each trained network."""
    with style():
        groups = _by_network(records)
        figure = panels(len(groups), len(groups), height=1.25)
        for number, (network, group) in enumerate(groups.items(), start=1):
            _panel(figure.add_subplot(1, len(groups), number), network, group)
        figure.axes[0].legend(fontsize=8, loc="lower right")
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say how many steps suffice for nine tenths of confidence."""
    told = []
    for network, group in _by_network(records).items():
        for r in group:
            if r.metric == CONFIDENT and (r.context["weights"], r.context["confidence"]) == (
                "int8",
                0.9,
            ):
                told.append(
                    f"{network}: {r.value:.4f} after {float(r.context['mean_steps']):.2f} steps on "
                    "average"
                )
    return (
        "Test accuracy of the engine's stream against the mean number of steps, stopped for every "
        "image after the same step (dots) or as soon as its leading class has enough confidence "
        f"(line). At a confidence of 0.9, int8: {'; '.join(told)}."
    )


def _by_network(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.subject.split("; ")[1], []).append(record)
    return groups


def _panel(axes: Axes, network: str, group: list[Record]) -> None:
    for r in group:
        if r.metric == "accuracy_by_weights":
            axes.axhline(
                r.value, color=DAY["rival"], linestyle="--", label="float model, all steps"
            )
    for weights, colour in COLOURS.items():
        steps, shares = curve(group, CONFIDENT, weights)
        axes.plot(steps, shares, color=DAY[colour], label=f"{weights}, by confidence")
        steps, shares = curve(group, FIXED, weights)
        axes.plot(steps, shares, "o", color=DAY[colour], label=f"{weights}, fixed steps")
    axes.set_title(network)
    axes.set_xlabel("mean time steps", fontsize=8)
    axes.set_ylabel("test accuracy", fontsize=8)
