"""What a run learnt, step by step."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Accuracy while learning"
TRAINING, VALIDATION = "training_accuracy_at_step", "validation_accuracy_at_step"


def select(records: Iterable[Record]) -> list[Record]:
    """Return the accuracies of runs whose curve is there."""
    listed = list(records)
    subjects = {r.subject for r in listed if r.metric == VALIDATION}
    wanted = (TRAINING, VALIDATION, "test_accuracy")
    return [r for r in listed if r.metric in wanted and r.subject in subjects]


def curve(records: Sequence[Record], metric: str) -> tuple[list[int], list[float]]:
    """Return steps and accuracies of one line."""
    points = sorted((int(r.context["step"]), r.value) for r in records if r.metric == metric)
    return [step for step, _ in points], [share for _, share in points]


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel for each run."""
    with style():
        groups = _by_run(records)
        figure = panels(len(groups), len(groups), height=1.25)
        for number, (run, group) in enumerate(groups.items(), start=1):
            _panel(figure.add_subplot(1, len(groups), number), run, group)
        figure.axes[0].legend(fontsize=8, loc="lower right")
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say where each run ended."""
    told = []
    for run, group in _by_run(records).items():
        ends = [f"validation {curve(group, VALIDATION)[1][-1]:.4f}"]
        ends += [f"test {r.value:.4f}" for r in group if r.metric == "test_accuracy"]
        told.append(f"{run}: {', '.join(ends)}")
    return (
        f"Accuracy of training batches and of the validation split. At the end, {'; '.join(told)}."
    )


def _by_run(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.subject, []).append(record)
    return groups


def _panel(axes: Axes, run: str, group: list[Record]) -> None:
    steps, shares = curve(group, TRAINING)
    axes.plot(steps, shares, color=DAY["rival"], linewidth=0.7, label="training batches")
    steps, shares = curve(group, VALIDATION)
    axes.plot(steps, shares, "o-", color=DAY["fast"], label="validation")
    tests = [r.value for r in group if r.metric == "test_accuracy"]
    if tests:
        axes.axhline(tests[-1], color=DAY["faithful"], linestyle="--", label="test, at the end")
    axes.set_title(run)
    axes.set_ylim(top=1)
    axes.set_xlabel("training steps", fontsize=8)
    axes.set_ylabel("accuracy", fontsize=8)
