"""The engine beside every dense way to run the same network."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, style

TITLE = "Time to classify, engine and rivals"
ENGINE = "engine int8"
OTHERS = ("ResNet", "DeiT")
"""Networks of another kind, which one might deploy instead."""


def select(records: Iterable[Record]) -> list[Record]:
    """Return the times of `benchmarks/engine.py`."""
    needed = {"contender", "model", "batch", "threads"}
    times = [r for r in records if r.metric == "milliseconds" and needed <= set(r.context)]
    return of_newest_machine(times)


def settings(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return setting -> its records; a setting is model, size, batch and threads.

    Larger networks come first, then smaller batches, then more threads; in each the engine, its
    rivals from the slowest to the fastest, and networks of another kind.
    """
    ordered = sorted(records, key=_place)
    ordered.sort(key=lambda r: (int(r.context["batch"]), -int(r.context["threads"])))
    ordered.sort(key=lambda r: str(r.context["model"]), reverse=True)  # sdt_8_768 before sdt_8_512
    found: dict[str, list[Record]] = {}
    for record in ordered:
        found.setdefault(record.subject.partition("; ")[2], []).append(record)
    return found


def _place(record: Record) -> tuple[object, ...]:
    contender = str(record.context["contender"])
    if contender.startswith("engine"):
        return 0, contender != ENGINE, 0.0
    return 1, contender.startswith(OTHERS), -record.value


def draw(records: Sequence[Record]) -> Figure:
    """Draw a panel of bars for each setting; a bar ends in its time and its multiple of int8's."""
    with style():
        groups = settings(records)
        longest = max(map(len, groups.values()))
        figure = panels(len(groups), 2 if len(groups) > 1 else 1, height=longest / 9)
        for number, (setting, group) in enumerate(groups.items(), start=1):
            axes = figure.add_subplot(-(-len(groups) // 2), min(2, len(groups)), number)
            _bars(axes, setting, group)
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say how many times slower each rival of the first setting is."""
    setting, group = next(iter(settings(records).items()))
    times = {str(r.context["contender"]): r.value for r in group}
    if ENGINE not in times:
        return f"Milliseconds of one call; the first setting is {setting}."
    rivals = {name: time for name, time in times.items() if not name.startswith("engine")}
    told = [f"{name} {time / times[ENGINE]:.1f}" for name, time in rivals.items()]
    return (
        f"Milliseconds of one call, median. {setting}: the engine in int8 takes "
        f"{times[ENGINE]:.1f} ms; the others take this many times as long: {', '.join(told)}. "
        "ResNet-50 and DeiT-S are other networks, which one might deploy instead."
    )


def _bars(axes: Axes, setting: str, group: list[Record]) -> None:
    names = [str(r.context["contender"]) for r in group]
    values = [r.value for r in group]
    own = dict(zip(names, values, strict=True)).get(ENGINE)
    axes.barh(names, values, color=[_colour(name) for name in names], height=0.7)
    for name, value in zip(names, values, strict=True):
        multiple = "" if own is None or name == ENGINE else f"  {value / own:.1f}x"
        axes.annotate(
            f"{value:.3g} ms{multiple}",
            (value, name),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.7 * max(values))  # room for the figures
    axes.grid(False)
    axes.tick_params(left=False, labelsize=8)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(setting.replace(", ", "\n", 1))


def _colour(contender: str) -> str:
    if contender.startswith("engine"):
        return DAY["fast"] if contender == ENGINE else DAY["faithful"]
    return DAY["other"] if contender.startswith(OTHERS) else DAY["rival"]
