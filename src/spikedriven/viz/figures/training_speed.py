"""A training step beside SpikingJelly 2's and the released code's."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, short, style

TITLE = "Training speed and memory"
SPEED, MEMORY = "training_images_per_second", "training_peak_bytes"
SLOWER = "training_times_slower"
OURS = "spikedriven"


def select(records: Iterable[Record]) -> list[Record]:
    """Return speeds, memory and ratios of `benchmarks/train.py`."""
    found = [
        r
        for r in records
        if r.metric in (SPEED, MEMORY, SLOWER) and {"contender", "threads"} <= set(r.context)
    ]
    compared = {_setting(r) for r in found if r.metric == SLOWER}
    return of_newest_machine(r for r in found if _setting(r) in compared)


def settings(records: Sequence[Record]) -> dict[str, dict[str, dict[str, float]]]:
    """Return setting -> contender -> metric -> value; ours comes first."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for r in sorted(records, key=lambda r: r.context["contender"] != OURS):
        group = found.setdefault(_setting(r), {})
        group.setdefault(str(r.context["contender"]), {})[r.metric] = r.value
    return found


def _setting(record: Record) -> str:
    return record.subject.partition("; ")[2]


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel of bars for each setting: images per second, how many times fewer, and MiB."""
    with style():
        groups = settings(records)
        figure = panels(len(groups), 1, height=0.7)
        for number, (setting, group) in enumerate(groups.items(), start=1):
            _bars(figure.add_subplot(len(groups), 1, number), setting, group)
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say how many times slower each rival is, and how much more memory it takes."""
    told = []
    for setting, group in settings(records).items():
        own = group[OURS][MEMORY]
        each = [
            f"{who} {values[SLOWER]:.2f} times as long, {values[MEMORY] / own:.2f} times the memory"
            for who, values in group.items()
            if who != OURS
        ]
        told.append(f"{setting}: {'; '.join(each)}")
    return (
        "Images per second of training steps that take turns, from the same weights, and the peak "
        f"memory of two. {'. '.join(told)}."
    )


def _bars(axes: Axes, setting: str, group: dict[str, dict[str, float]]) -> None:
    names = list(group)
    speeds = [group[name][SPEED] for name in names]
    colours = [DAY["fast"] if name == OURS else DAY["rival"] for name in names]
    axes.barh(names, speeds, color=colours, height=0.7)
    for name, speed in zip(names, speeds, strict=True):
        values = group[name]
        times = f"  1/{values[SLOWER]:.2f}" if SLOWER in values else ""
        axes.annotate(
            f"{short(speed)}/s{times}  {values[MEMORY] / 2**20:.0f} MiB",
            (speed, name),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 2 * max(speeds))  # room for the figures
    axes.grid(False)
    axes.tick_params(left=False, labelsize=8)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(setting.replace(", ", "\n", 1))
