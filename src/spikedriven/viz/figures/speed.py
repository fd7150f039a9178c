"""The engine beside every dense way to run the same network."""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spikedriven.records import Record
from spikedriven.viz.gather import of_newest_machine
from spikedriven.viz.theme import DAY, panels, short, style

TITLE = "Time to classify, engine and rivals"
TIME, RATIO = "milliseconds", "times_slower_than_engine_int8"
ENGINE = "engine int8"
OTHERS = ("ResNet", "DeiT")
"""Networks of another kind, which one might deploy instead."""


def select(records: Iterable[Record]) -> list[Record]:
    """Return the times of `benchmarks/engine.py`, and their ratios to int8's."""
    needed = {"contender", "model", "batch", "threads"}
    found = [r for r in records if r.metric in (TIME, RATIO) and needed <= set(r.context)]
    with_engine = {_setting(r) for r in found if r.context["contender"] == ENGINE}
    return of_newest_machine(r for r in found if _setting(r) in with_engine)


def settings(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return setting -> its times; a setting is model, size, batch and threads.

    Larger networks come first, then smaller batches, then more threads; in each the engine, its
    rivals from the slowest to the fastest, and networks of another kind.
    """
    ordered = sorted((r for r in records if r.metric == TIME), key=_place)
    ordered.sort(key=lambda r: (int(r.context["batch"]), -int(r.context["threads"])))
    ordered.sort(key=lambda r: str(r.context["model"]), reverse=True)  # sdt_8_768 before sdt_8_512
    found: dict[str, list[Record]] = {}
    for record in ordered:
        found.setdefault(_setting(record), []).append(record)
    return found


def ratios(records: Sequence[Record]) -> dict[str, float]:
    """Return subject -> how many times slower than the engine in int8."""
    return {r.subject: r.value for r in records if r.metric == RATIO}


def _setting(record: Record) -> str:
    return record.subject.partition("; ")[2]


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
            _bars(axes, setting, group, ratios(records))
        return figure


def caption(records: Sequence[Record]) -> str:
    """Say how many times slower each rival of the first setting is."""
    setting, group = next(iter(settings(records).items()))
    times = {str(r.context["contender"]): r.value for r in group}
    slower = ratios(records)
    told = [
        f"{r.context['contender']} {slower[r.subject]:.1f}"
        for r in group
        if r.subject in slower and not str(r.context["contender"]).startswith("engine")
    ]
    return (
        f"Milliseconds of one call, median. {setting}: the engine in int8 takes "
        f"{short(times[ENGINE])} ms; the others take this many times as long: {', '.join(told)}. "
        "ResNet-50 and DeiT-S are other networks, which one might deploy instead."
    )


def _bars(axes: Axes, setting: str, group: list[Record], slower: dict[str, float]) -> None:
    names = [str(r.context["contender"]) for r in group]
    values = [r.value for r in group]
    axes.barh(names, values, color=[_colour(name) for name in names], height=0.7)
    for record, name in zip(group, names, strict=True):
        multiple = f"  {slower[record.subject]:.1f}x" if record.subject in slower else ""
        axes.annotate(
            f"{short(record.value)} ms{multiple}",
            (record.value, name),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.9 * max(values))  # room for the figures
    axes.grid(False)
    axes.tick_params(left=False, labelsize=8)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_title(setting.replace(", ", "\n", 1))


def _colour(contender: str) -> str:
    if contender.startswith("engine"):
        return DAY["fast"] if contender == ENGINE else DAY["faithful"]
    return DAY["other"] if contender.startswith(OTHERS) else DAY["rival"]
