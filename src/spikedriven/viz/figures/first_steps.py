"""The losses of the first training steps beside the released code's."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "First training steps, beside the released code"
LOSS = "loss_at_step"
OURS, RELEASED = "spikedriven", "released code"


def select(records: Iterable[Record]) -> list[Record]:
    """Return the losses of `benchmarks/first_steps.py`."""
    found = [r for r in records if r.metric == LOSS]
    return (
        of_newest_machine(found) if any(r.context["contender"] == RELEASED for r in found) else []
    )


def courses(records: Sequence[Record]) -> dict[str, dict[str, list[float]]]:
    """Return setting -> contender -> its losses in order."""
    found: dict[str, dict[str, list[float]]] = {}
    for r in sorted(records, key=lambda r: int(r.context["step"])):
        _, setting, _ = r.subject.split("; ")
        group = found.setdefault(setting, {})
        group.setdefault(str(r.context["contender"]), []).append(r.value)
    return found


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each setting: the distance from the released code's loss, step by step."""
    with style():
        groups = courses(records)
        figure = panels(len(groups), len(groups), height=1.25)
        for number, (setting, group) in enumerate(groups.items(), start=1):
            _panel(figure.add_subplot(1, len(groups), number), setting, group)
        figure.axes[0].legend(fontsize=8)
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say how far apart the losses are at most."""
    told = []
    for setting, group in courses(records).items():
        apart = {
            name: max(map(abs, _differences(group, name))) for name in group if name != RELEASED
        }
        each = ", ".join(f"{name} {value:.4f}" for name, value in apart.items())
        told.append(f"{setting}: {each}; the loss itself is {group[RELEASED][0]:.3f} at first")
    return (
        "Loss of every step less that of the released code, from the same weights and batches in "
        "float32. Grey: the released code from weights a rounding beside them. At most, "
        f"{'; '.join(told)}."
    )


def _differences(group: dict[str, list[float]], name: str) -> list[float]:
    return [a - b for a, b in zip(group[name], group[RELEASED], strict=True)]


def _panel(axes: Axes, setting: str, group: dict[str, list[float]]) -> None:
    for name in group:
        if name != RELEASED:
            differences = _differences(group, name)
            colour = DAY["fast"] if name == OURS else DAY["rival"]
            axes.plot(range(len(differences)), differences, "o-", color=colour, label=name)
    axes.set_title(setting.replace(", ", "\n", 1))
    axes.set_xlabel("training step", fontsize=8)
    axes.set_ylabel("loss, difference", fontsize=8)
