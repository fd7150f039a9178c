"""`spikedriven audit`: whether only spikes meet weights, in a network or in machine code."""

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from spikedriven.cli.console import say, show_json, show_table
from spikedriven.errors import ConfigError

if TYPE_CHECKING:
    from spikedriven.energy.audit import Finding


def run(options: Namespace) -> int:
    """Audit; exit 1 where something else than spikes was found, or no spike at all."""
    if options.engine and options.subject is not None:
        raise ConfigError(
            f"--engine stands beside {options.subject}; one audit looks at one of them: "
            "leave one out"
        )
    for option in ("data", "checkpoint"):
        if options.engine and getattr(options, option) is not None:
            raise ConfigError(
                f"--{option} was given beside --engine; kernels are read without any data: "
                "leave one of them out"
            )
    if options.engine:
        return _audit_engine(options)
    if options.subject is None:
        raise ConfigError(
            "nothing was named to audit; it must be a run, a model or the engine: "
            "pass --engine, or name a RUN or MODEL"
        )
    return _audit_network(options)


def _audit_network(options: Namespace) -> int:
    from spikedriven.cli.subject import open_subject
    from spikedriven.energy.audit import audit

    subject = open_subject(options.subject, data=options.data, checkpoint=options.checkpoint)
    report = audit(subject.model, subject.x)
    code = 0 if report.ok and report.fires else 1
    if options.json:
        show_json(
            {"subject": subject.name, "ok": report.ok, "fires": report.fires, **asdict(report)}
        )
        return code
    say(subject.name)
    say()
    columns = ["operation", "what was seen", "times"]
    if report.exceptions:
        rows = [(*_row(found), found.reason) for found in report.exceptions]
        show_table(["allowed", *columns, "why"], rows)
        say()
    if report.violations:
        show_table(["VIOLATION", *columns], [_row(found) for found in report.violations])
        say()
    if report.silent:
        say(
            f"SILENT: {len(report.silent)} of {len(report.synapses)} synapses met nothing but "
            f"zeros, which proves nothing of them: {', '.join(report.silent)}"
        )
    say(
        f"{report.checked} operations: every other operand is exactly 0 or 1."
        if report.ok
        else f"{len(report.violations)} violations in {report.checked} operations"
    )
    if not report.fires:
        say("No spike reached a synapse: train the network, or show it what it fires on.")
    return code


def _row(found: "Finding") -> tuple[str, str, str, int]:
    return found.module or "(the model)", found.operation, found.what, found.times


def _audit_engine(options: Namespace) -> int:
    """Disassemble every kernel; fail where one multiplies in a loop, or was not read whole."""
    from spikedriven.engine.purity import audit_engine

    kernels = audit_engine()
    findings = [finding for kernel in kernels for finding in kernel.findings]
    unread = [kernel for kernel in kernels if kernel.objection]
    code = 0 if all(kernel.is_proved for kernel in kernels) else 1
    if options.json:
        show_json({"ok": code == 0, "kernels": [asdict(kernel) for kernel in kernels]})
        return code
    by_name: dict[str, list[int]] = {}
    for kernel in kernels:
        row = by_name.setdefault(kernel.name, [0, 0, 0, 0])
        row[0] += 1
        row[1] += kernel.loops
        row[2] += kernel.instructions
        row[3] += len(kernel.findings)
    show_table(
        ["kernel", "versions", "loops", "instructions in loops", "multiplications in loops"],
        [(name, *row) for name, row in by_name.items()],
    )
    for finding in findings[:20]:
        say(f"{finding.kernel}: {finding.instruction} (line {finding.line} of its assembly)")
    for kernel in unread:
        say(f"{kernel.name}({kernel.signature}) {kernel.objection}")
    if findings:
        say(f"{len(findings)} multiplications in the loops of {len(kernels)} compiled kernels")
    if unread:
        say(f"{len(unread)} of {len(kernels)} kernels were not read whole, which proves nothing.")
    if code == 0:
        say(f"No loop of {len(kernels)} compiled kernels multiplies.")
    return code
