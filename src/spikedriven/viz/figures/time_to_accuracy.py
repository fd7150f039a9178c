"""How fast the same recipe learns here, with SpikingJelly 2 and with the released code."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Time to accuracy, beside the rivals"
ACCURACY, REACHED = "accuracy_after_epoch", "seconds_to_accuracy"
OURS = "spikedriven"


def select(records: Iterable[Record]) -> list[Record]:
    """Return what `benchmarks/train.py --epochs N` recorded, where ours had a rival."""
    found = of_newest_machine(r for r in records if r.metric in (ACCURACY, REACHED))
    who = {r.context["contender"] for r in found}
    return found if OURS in who and len(who) > 1 else []


def curves(records: Sequence[Record]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return setting -> contender -> seconds of training and accuracy; ours comes last."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    listed = [r for r in records if r.metric == ACCURACY]
    for r in sorted(listed, key=lambda r: (r.context["contender"] == OURS, r.context["epoch"])):
        _, setting, _ = r.subject.split("; ")
        group = found.setdefault(setting, {})
        point = float(r.context["seconds"]), r.value
        group.setdefault(str(r.context["contender"]), []).append(point)
    return found


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each setting: validation accuracy over seconds of training."""
    with style():
        groups = curves(records)
        figure = panels(len(groups), len(groups), height=1.25)
        for number, (setting, group) in enumerate(groups.items(), start=1):
            _panel(figure.add_subplot(1, len(groups), number), setting, group)
        figure.axes[0].legend(fontsize=8, loc="lower right")
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say when each reached the accuracy that was asked for, and where it ended."""
    reached = {
        (r.subject.partition("; ")[2].partition(", validation")[0], r.context["contender"]): (
            f"{r.subject.rpartition(' ')[2]} after {r.value:.0f} s, "
        )
        for r in records
        if r.metric == REACHED
    }
    told = []
    for setting, group in curves(records).items():
        each = []
        for who, points in reversed(group.items()):
            seconds, share = points[-1]
            first = reached.get((setting, who), "")
            each.append(f"{who} {first}{share:.4f} at the end, after {seconds:.0f} s")
        told.append(f"{setting}: {'; '.join(each)}")
    return (
        "Accuracy on the validation split over seconds of training, from the same weights with the "
        f"same batches, an epoch in turn. {'. '.join(told)}."
    )


def _panel(axes: Axes, setting: str, group: dict[str, list[tuple[float, float]]]) -> None:
    for number, (who, points) in enumerate(group.items()):
        colour = DAY["fast"] if who == OURS else DAY["rival"]
        seconds, shares = zip(*points, strict=True)
        axes.plot(seconds, shares, "os^"[number % 3] + "-", color=colour, label=who)
    axes.set_title(setting.replace(", ", "\n", 1))
    axes.set_xlabel("seconds of training", fontsize=8)
    axes.set_ylabel("accuracy", fontsize=8)
