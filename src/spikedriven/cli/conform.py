"""`spikedriven conform`: the promises of the package, asked of one model."""

from argparse import Namespace
from dataclasses import asdict

from spikedriven.cli.console import say, show_json, show_table
from spikedriven.cli.subject import open_subject


def run(options: Namespace) -> int:
    """Ask every rule; exit 1 where one is broken."""
    from spikedriven.conform import conform

    subject = open_subject(options.subject, data=options.data, checkpoint=options.checkpoint)
    result = conform(subject.model, subject.x, mean=subject.mean, std=subject.std)
    code = 0 if result.ok else 1
    if options.json:
        verdicts = [asdict(verdict) for verdict in result.verdicts]
        show_json({"subject": subject.name, "ok": result.ok, "verdicts": verdicts})
        return code
    say(subject.name)
    say()
    words = {True: "kept", False: "BROKEN", None: "not asked"}
    show_table(
        ["rule", "verdict", "what was compared"],
        [(verdict.rule, words[verdict.held], verdict.detail) for verdict in result.verdicts],
    )
    return code
