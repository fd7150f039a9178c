"""One palette, one font, one set of sizes; and pictures that are readable by day and by night.

Figures are drawn in the colours of the day. In the SVG each of them is a CSS variable, so that the
page, or the picture itself where it stands alone, changes them with the reader's preference.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

DAY = {
    "ink": "#24221e",
    "muted": "#6f6a61",
    "grid": "#d8d3c8",
    "fast": "#c2410b",
    "faithful": "#0f766d",
    "rival": "#8a8f99",
    "other": "#b89b55",
}
"""Name -> colour on light paper: text, its quieter parts, lines of the grid; int8, int16, dense
networks, and networks of another kind."""
NIGHT = {
    "ink": "#ebe7df",
    "muted": "#a8a296",
    "grid": "#3d3a35",
    "fast": "#fb8b4c",
    "faithful": "#4fd1c0",
    "rival": "#7d8591",
    "other": "#d0b878",
}
"""The same on dark paper."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
PANEL_INCHES = (3.6, 2.3)
"""Width and height of one panel."""
PIXELS_PER_INCH = 96
"""Of a browser; a figure is never shown larger than it was drawn."""

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib; readers see `FONT`
    "font.size": 9,
    "text.color": DAY["ink"],
    "axes.labelcolor": DAY["muted"],
    "axes.edgecolor": DAY["grid"],
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": DAY["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": DAY["muted"],
    "ytick.color": DAY["muted"],
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "svg.fonttype": "none",
    "svg.hashsalt": "spikedriven",  # the same figure is the same file
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in this theme inside the block; outside nothing changes."""
    with rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def panels(count: int, columns: int, *, height: float = 1.0) -> Figure:
    """Return a figure with room for `count` panels, not yet added; `height` stretches each."""
    rows = -(-count // columns)
    width_inches, height_inches = PANEL_INCHES
    size = (width_inches * columns, height_inches * height * rows + 0.3)
    return Figure(figsize=size, layout="constrained")


def short(value: float) -> str:
    """Return a time to three digits, never with an exponent.

    >>> short(1137.6), short(47.66), short(0.8372)
    ('1138', '47.7', '0.837')
    """
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def svg(figure: Figure, name: str, title: str, *, alone: bool) -> str:
    """Return a figure as SVG text, whose colours are CSS variables.

    Args:
        figure: What to write.
        name: Prefix of its ids, which are then unique in a page.
        title: What it shows, for readers who do not see it.
        alone: A file of its own, which brings the colours; else for a page that has them.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", FONT.replace('"', "'"), text)
    for colour, day in DAY.items():
        text = text.replace(day, f"var(--{colour}, {day})")
    head, _, body = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*pt"', "", head)
    width = figure.get_figwidth() * PIXELS_PER_INCH
    opening = f'{head} role="img" aria-label="{escape(title)}" style="max-width:{width:.0f}px">'
    return f"{opening}<style>{variables()}</style>{body}" if alone else f"{opening}{body}"


def variables() -> str:
    """Return the palette as CSS: by day, and by night where the reader prefers that."""

    def listed(palette: dict[str, str]) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in palette.items())

    return f":root{{{listed(DAY)}}}@media(prefers-color-scheme:dark){{:root{{{listed(NIGHT)}}}}}"
