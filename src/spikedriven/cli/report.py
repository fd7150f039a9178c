"""`spikedriven report`: records as one page of pictures."""

from argparse import Namespace
from pathlib import Path

from spikedriven.cli.console import say, show_json


def run(options: Namespace) -> int:
    """Gather the records, draw what they suffice for, and write the page."""
    from spikedriven.records import write_whole
    from spikedriven.viz.gather import gather
    from spikedriven.viz.report import drawable, page

    output = Path(options.output)
    records = gather([Path(path) for path in options.records])
    figures = list(drawable(records))
    write_whole(output, page(records).encode())
    if options.json:
        show_json({"page": str(output), "records": len(records), "figures": figures})
        return 0
    say(f"{len(records)} records; figures: {', '.join(figures) or 'none that they suffice for'}")
    say(f"Open {output} in a browser; it needs no other file.")
    return 0
