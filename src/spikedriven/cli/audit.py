"""`spikedriven audit --engine`: what the machine code of the kernels really does."""

from argparse import Namespace
from dataclasses import asdict

from spikedriven.cli.console import say, show_json, show_table
from spikedriven.errors import ConfigError


def run(options: Namespace) -> int:
    """Disassemble every kernel; exit 1 where one multiplies in a loop."""
    from spikedriven.engine.purity import audit_engine

    if not options.engine:
        raise ConfigError("nothing was named to audit; it must be the engine: pass --engine")
    kernels = audit_engine()
    findings = [finding for kernel in kernels for finding in kernel.findings]
    if options.json:
        show_json([asdict(kernel) for kernel in kernels])
        return 1 if findings else 0
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
    say(
        f"{len(findings)} multiplications in the loops of {len(kernels)} compiled kernels"
        if findings
        else f"No loop of {len(kernels)} compiled kernels multiplies."
    )
    return 1 if findings else 0
