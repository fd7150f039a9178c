"""Records → one HTML page that needs nothing else: no server, no network, no other file."""

from collections.abc import Sequence
from html import escape
from types import ModuleType

from spikedriven.errors import DataError
from spikedriven.records import Record
from spikedriven.viz.figures import (
    accuracy_steps,
    energy_curve,
    firing_rate,
    first_steps,
    scaling,
    speed,
    time_to_accuracy,
    training_curve,
    training_speed,
)
from spikedriven.viz.theme import FONT, svg, variables

FIGURES: tuple[ModuleType, ...] = (
    speed, firing_rate, scaling, accuracy_steps, training_curve, energy_curve, training_speed,
    time_to_accuracy, first_steps,
)  # fmt: skip
"""In the order of the page."""

_CSS = f"""{variables()}
:root{{color-scheme:light dark;--paper:#fbfaf6}}
@media(prefers-color-scheme:dark){{:root{{--paper:#191816}}}}
body{{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:66rem;background:var(--paper);
color:var(--ink);font:16px/1.55 {FONT}}}
h1{{font-size:1.7rem;margin:0 0 .3rem}}h2{{font-size:1.15rem;margin:3rem 0 .4rem}}
p{{max-width:46rem;margin:.3rem 0}}.source,summary,table{{color:var(--muted);font-size:.85rem}}
svg{{display:block;width:100%;height:auto;margin:1rem 0 .4rem}}
.scroll{{overflow-x:auto}}table{{border-collapse:collapse}}
td,th{{text-align:left;padding:.15rem .9rem .15rem 0;border-bottom:1px solid var(--grid);
vertical-align:top}}td.number{{text-align:right;font-variant-numeric:tabular-nums}}
code{{font-size:.95em}}"""


def drawable(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the name of every figure that can be drawn → the records that it shows."""
    selected = {name_of(figure): figure.select(records) for figure in FIGURES}
    return {name: chosen for name, chosen in selected.items() if chosen}


def name_of(figure: ModuleType) -> str:
    """Return a figure's name: that of its file."""
    return figure.__name__.rpartition(".")[2]


def page(records: Sequence[Record], title: str = "spikedriven: measured") -> str:
    """Return the page.

    Args:
        records: What was measured; every figure that they suffice for is drawn.
        title: Heading of the page.

    Raises:
        DataError: There are no records.
    """
    if not records:
        raise DataError("there are no records; a report needs at least one: run a benchmark first")
    chosen = drawable(records)
    parts = [_figure(figure, chosen[name_of(figure)]) for figure in FIGURES
             if name_of(figure) in chosen]  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p class=source>{_machines(records)}</p>\n"
        + "\n".join(parts)
        + f"\n{_table(records)}\n</body>\n</html>\n"
    )


def _figure(figure: ModuleType, records: Sequence[Record]) -> str:
    name = name_of(figure)
    picture = svg(figure.draw(records), name, figure.TITLE, alone=False)
    return (
        f'<section id="{name}">\n<h2>{escape(figure.TITLE)}</h2>\n{picture}\n'
        f"<p>{escape(figure.caption(records))}</p>\n"
        f"<p class=source>{_sources(records)}</p>\n</section>"
    )


def _sources(records: Sequence[Record]) -> str:
    made = dict.fromkeys((r.command, r.commit) for r in records)
    return "Made by " + "; ".join(
        f"<code>{escape(command)}</code> at {escape(commit)}" for command, commit in made
    )


def _machines(records: Sequence[Record]) -> str:
    machines = dict.fromkeys(r.device for r in records)
    return f"{len(records)} records, measured on: {escape('; '.join(machines))}."


def _table(records: Sequence[Record]) -> str:
    rows = [
        f"<tr><td>{escape(r.metric)}</td><td>{escape(r.subject)}</td>"
        f'<td class="number">{r.value:.6g}</td><td>{escape(r.unit)}</td>'
        f'<td class="number">{r.count}</td><td>{escape(r.commit)}</td></tr>'
        for r in records
    ]
    heads = "".join(f"<th>{h}</th>" for h in ("metric", "of", "value", "unit", "count", "commit"))
    return (
        f"<details><summary>All {len(records)} records</summary>\n"
        f'<div class="scroll"><table>\n<tr>{heads}</tr>\n' + "\n".join(rows) + "\n"
        "</table></div></details>"
    )
