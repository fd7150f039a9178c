"""What accuracy costs: one network for each budget of additions."""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Accuracy against executed energy"
ENERGY, ACCURACY = "energy_executed", "test_accuracy"
SHARE = "attention_share_executed"


def select(records: Iterable[Record]) -> list[Record]:
    """Return energies, shares and accuracies of `benchmarks/energy_curve.py`."""
    listed = [r for r in records if "curve" in r.context and r.metric in (ENERGY, ACCURACY, SHARE)]
    whole = {r.subject for r in listed if r.metric == ENERGY}
    whole &= {r.subject for r in listed if r.metric == ACCURACY}
    return of_newest_machine(r for r in listed if r.subject in whole)


def curves(records: Sequence[Record]) -> dict[str, list[tuple[str, dict[str, float]]]]:
    """Return curve -> budget and figures of each of its points, from the dearest down."""
    points: dict[str, tuple[str, str, dict[str, float]]] = {}
    for record in records:
        context = record.context
        place = points.setdefault(
            record.subject, (str(context["curve"]), str(context["budget"]), {})
        )
        place[2][record.metric] = record.value
    found: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for curve, budget, values in points.values():
        found.setdefault(curve, []).append((budget, values))
    for line in found.values():
        line.sort(key=lambda point: -point[1][ENERGY])
    return found


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each curve."""
    with style():
        lines = curves(records)
        figure = panels(len(lines), len(lines), height=1.25)
        for number, (curve, points) in enumerate(lines.items(), start=1):
            axes = figure.add_subplot(1, len(lines), number)
            energies = [values[ENERGY] for _, values in points]
            shares = [values[ACCURACY] for _, values in points]
            axes.plot(energies, shares, "o-", color=DAY["fast"], label="networks")
            for (budget, _), energy, share in zip(points, energies, shares, strict=True):
                axes.annotate(
                    budget, (energy, share), xytext=(0, 5), textcoords="offset points", fontsize=7
                )
            axes.set_xscale("log")
            axes.set_title(curve)
            axes.set_xlabel("executed, mJ per image, by budget", fontsize=8)
            axes.set_ylabel("test accuracy", fontsize=8)
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say what each budget leaves."""
    told = []
    for curve, points in curves(records).items():
        ends = []
        for budget, values in points:
            end = f"budget {budget}: {values[ACCURACY]:.4f} at {values[ENERGY]:.4g} mJ"
            if values.get(SHARE):
                end += f", attention 1/{1 / values[SHARE]:.1f} of the artificial one"
            ends.append(end)
        told.append(f"{curve}: {'; '.join(ends)}")
    return (
        "A network for each budget of synaptic additions: test accuracy against the energy of what "
        f"it executes, float32 at 45 nm. {'. '.join(told)}."
    )
