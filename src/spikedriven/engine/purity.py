"""Proof from the machine code that the engine's kernels do not multiply.

A fresh process compiles every kernel for the types that the engine passes, by running small drawn
programs. Its assembly is split into basic blocks, and what lies on a cycle of jumps is a loop: no
multiplication may stand there, be it of vectors, of scalars or of an address. Outside of loops,
once per call or thread, sizes are multiplied freely.

`python -m spikedriven.engine.purity` prints the audit as JSON.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from spikedriven.engine.plan import (
    AttendStep,
    FireStep,
    ImageStep,
    Input,
    Integers,
    Neuron,
    PoolStep,
    Program,
    ReadoutStep,
    StreamStep,
)
from spikedriven.errors import BackendError


@dataclass(frozen=True, slots=True)
class Site:
    """An instruction inside a loop."""

    instruction: str
    line: int
    """Line of the assembly, from 1."""
    depth: int
    """1 in an outermost loop."""


@dataclass(frozen=True, slots=True)
class Loops:
    """What stands inside the loops of an assembly."""

    loops: int
    instructions: int
    """Instructions inside loops."""
    additions: int
    """Additions and subtractions of vectors inside loops: proof that the hot ones were seen."""
    multiplies: tuple[Site, ...]
    divisions: tuple[Site, ...]
    calls: tuple[str, ...]
    """Functions called inside loops whose code is elsewhere, sorted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A multiplication, or division, inside a loop of a kernel."""

    kernel: str
    signature: str
    instruction: str
    line: int
    """Line of the kernel's assembly, from 1."""
    depth: int
    """1 in an outermost loop."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as compiled for one set of types."""

    name: str
    signature: str
    """Types of the arguments; empty for a kernel that no program called."""
    loops: int = 0
    instructions: int = 0
    """Instructions inside loops."""
    additions: int = 0
    """Additions and subtractions of vectors inside loops."""
    findings: tuple[Finding, ...] = ()
    """Multiplications inside loops: there should be none."""
    divisions: tuple[Finding, ...] = ()
    """Divisions inside loops; they are no multiplications."""
    calls: tuple[str, ...] = ()
    """Functions called inside loops whose code was not inspected."""

    @property
    def objection(self) -> str:
        """Why the kernel proves nothing, in words; empty where all of its loops were read."""
        unread = [name for name in self.calls if name.lstrip("_") not in RUNTIME]
        if not self.signature:
            return "was not compiled"
        if not self.loops:
            return "has no loop that was found"
        return f"calls what was not read: {', '.join(unread)}" if unread else ""

    @property
    def is_proved(self) -> bool:
        """Whether all of its loops were read, and none multiplies."""
        return not (self.findings or self.objection)


RUNTIME = frozenset(
    {"bzero", "memcpy", "memmove", "memset", "NRT_MemInfo_alloc_aligned", "NRT_MemInfo_call_dtor"}
)
"""What a loop may call unread: libc and Numba's runtime fill memory, copy it, take and free it."""


def audit_engine() -> list[Kernel]:
    """Compile every kernel of the engine in a fresh process and look for multiplications.

    It takes about a minute: nothing comes from the disk's cache, since cached code cannot be read.
    The processor is this one, or what Numba's environment variables (NUMBA_CPU_NAME and
    NUMBA_CPU_FEATURES) name.

    Returns:
        The kernels, as compiled for each set of types; what they prove, see `Kernel.is_proved`.

    Raises:
        BackendError: The process failed, or there was no kernel; its errors are a note.
    """
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.run(
            [sys.executable, "-m", "spikedriven.engine.purity"],
            env={**os.environ, "NUMBA_CACHE_DIR": empty, "NUMBA_DISABLE_JIT": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    if process.returncode:
        *_, last = process.stderr.strip().splitlines() or ["it said nothing"]
        error = BackendError(
            f"the process that compiles the kernels ended with {process.returncode} ({last}); it "
            "must run the engine as `spikedriven run` does: look with --debug"
        )
        error.add_note(process.stderr)
        raise error
    kernels = [_kernel(described) for described in json.loads(process.stdout)]
    if not kernels:
        raise BackendError(
            "no kernel was compiled; Numba must compile the engine to be audited: "
            "look whether NUMBA_DISABLE_JIT or another of Numba's settings forbids it"
        )
    return kernels


def multiplies_in_loops(assembly: str) -> tuple[Site, ...]:
    """Return every multiplication inside a loop; see `inspect_loops`."""
    return inspect_loops(assembly).multiplies


# ------------------------------------------------------------------ names of instructions

# Anything with a product inside: imul, mulx, vpmulld, vmulps, vpmaddwd, vfmadd231ps, fmsub, smlal,
# mla, mneg, sdot, vpdpbusd, dpps ...
_MULTIPLY = re.compile(
    r"mul|madd|msub|mla|mls|mneg|dot|^f?n?(mad|msb)$|^v?dpp[sd]$|^(vpdp|vdp|tdp|tcmm)"
)
_DIVIDE = re.compile(r"^(v|i|s|u|f)?div")
_VECTOR_ADD = re.compile(r"^v?p(add|sub)[bwdq]\s|^(add|sub)\s+[vz]\d+\.")
_PREFIX = re.compile(r"^((lock|rep\w*|notrack|\{\w+\})[\s;]+)+")
_CALL = re.compile(r"^(call[a-z]*|bl|blr|blra[ab]z?)$")
_CONDITIONAL = re.compile(r"^(j(?!mp)\w+|loop\w*|bc?\.\w+|cbn?z|tbn?z)$")
_JUMP = re.compile(r"^(jmp\w*|b|br|bra[ab]z?)$")
_END = re.compile(r"^(ret\w*|ud2|hlt|udf|brk|int3)$")

# ------------------------------------------------------------------ the layout of an assembly

_COMMENT = re.compile(r"^#.*|//.*|(^|\s)(##?|;)(\s.*)?$")
_LABEL = re.compile(r'^("[^"]+"|[^\s:"]+):')
_LOCAL = re.compile(r"^\.L|^L(BB|JTI|CPI|tmp|loh|func)")
_DATA = re.compile(r"^\.(quad|xword|long|word|hword|short|byte|2byte|4byte|8byte)\s")
_WORD = re.compile(r"[\w.$]+")
# An address taken: $name, :lo12:name, name@GOTPAGE, name(%rip).
_ADDRESS = re.compile(
    r'(?:\$|:\w+:)("[^"]+"|[A-Za-z_.][\w.$]*)|([\w.$]+)@(?:GOT)?PAGE|([\w.$]+)(?:@\w+)?\(%rip\)'
)


@dataclass(slots=True)
class _Block:
    """Instructions that run one after the other: (line, text)."""

    labels: list[str] = field(default_factory=list)
    instructions: list[tuple[int, str]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """Labels of this function that may come next."""
    falls_through: bool = True
    depth: int = 0


def _split(assembly: str) -> tuple[dict[str, list[_Block]], set[str]]:
    """Return the functions as basic blocks, and the labels that stand in jump tables."""
    functions: dict[str, list[_Block]] = {}
    blocks: list[_Block] = []
    tabled: set[str] = set()
    for number, raw in enumerate(assembly.splitlines(), 1):
        text = _COMMENT.sub("", raw).strip()
        while match := _LABEL.match(text):
            label = match[1].strip('"')
            if not _LOCAL.match(label):
                blocks = functions.setdefault(label, [])
            if not blocks or blocks[-1].instructions:
                blocks.append(_Block())
            blocks[-1].labels.append(label)
            text = text[match.end() :].strip()
        if _DATA.match(text):
            tabled.update(word for word in _WORD.findall(text) if _LOCAL.match(word))
        if not text or text.startswith("."):
            continue
        if not blocks or not blocks[-1].falls_through or blocks[-1].targets:
            blocks.append(_Block())
        block = blocks[-1]
        text = _PREFIX.sub("", text)
        block.instructions.append((number, text))
        name, operands = _parts(text)
        if (_CONDITIONAL.match(name) or _JUMP.match(name)) and not operands.startswith("*"):
            block.targets = [word for word in _WORD.findall(operands) if _LOCAL.match(word)]
        block.falls_through = not (_JUMP.match(name) or _END.match(name))
    return {name: blocks for name, blocks in functions.items() if _size(blocks)}, tabled


def _parts(text: str) -> tuple[str, str]:
    name, *operands = text.split(None, 1)
    return name.lower(), "".join(operands)


def _size(blocks: Iterable[_Block]) -> int:
    return sum(len(block.instructions) for block in blocks)


# ------------------------------------------------------------------ loops


def inspect_loops(assembly: str) -> Loops:
    """Find the loops of an assembly (x86-64 or AArch64), and what stands inside them.

    A loop is a set of blocks that can reach one another, whatever its entries; a function that is
    called inside a loop, or that calls itself, lies inside a loop from end to end. Where a jump or
    a call through a register may lead is taken to be everything that the function has at hand.
    Numba's own loop over a thread's shares of the work, the outermost of its `__gufunc__`
    functions, is none: a thread has one share.
    """
    functions, tabled = _split(assembly)
    loops = 0
    for name, blocks in functions.items():
        loops += _nest(blocks, tabled, has_shares=name.lstrip("_").startswith("gufunc__"))
    calls = _deepen_called(functions)
    inside = [
        Site(text, line, block.depth)
        for blocks in functions.values()
        for block in blocks
        if block.depth
        for line, text in block.instructions
    ]
    return Loops(
        loops=loops,
        instructions=len(inside),
        additions=sum(bool(_VECTOR_ADD.match(site.instruction)) for site in inside),
        multiplies=tuple(site for site in inside if _MULTIPLY.search(_parts(site.instruction)[0])),
        divisions=tuple(site for site in inside if _DIVIDE.match(_parts(site.instruction)[0])),
        calls=tuple(sorted(calls)),
    )


def _nest(blocks: list[_Block], tabled: set[str], has_shares: bool) -> int:
    """Set how many loops each block lies in; return how many loops there are."""
    follows = _follows(blocks, tabled)
    loops = 0
    parts = [(set(range(len(blocks))), 1, has_shares)]
    while parts:
        nodes, depth, is_outside = parts.pop()
        for component in _components(nodes, follows):
            if len(component) == 1 and not component & follows[min(component)]:
                continue
            heads = {n for i in nodes - component for n in follows[i] & component}
            heads = heads or {min(component)}
            returns = sum(len(follows[i] & heads) for i in component)
            counts = not (is_outside and returns == 1)
            for i in component:
                blocks[i].depth = depth if counts else 0
            loops += counts
            parts.append((component - heads, depth + counts, False))
    return loops


def _follows(blocks: list[_Block], tabled: set[str]) -> list[set[int]]:
    """Return, for each block, the blocks that may come next."""
    places = {label: i for i, block in enumerate(blocks) for label in block.labels}
    follows = []
    for i, block in enumerate(blocks):
        after = {places[label] for label in block.targets if label in places}
        if block.falls_through and i + 1 < len(blocks):
            after.add(i + 1)
        if block.instructions and not block.falls_through and not block.targets:
            name, _ = _parts(block.instructions[-1][1])
            if _JUMP.match(name):  # through a register: a jump table, if there is one
                after = {places[label] for label in tabled if label in places}
        follows.append(after)
    return follows


def _components(nodes: set[int], follows: list[set[int]]) -> Iterator[set[int]]:
    """Yield the sets of nodes that can reach one another (Kosaraju's two searches)."""
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(nodes):
        stack = [(root, iter(follows[root]))] if root not in seen else []
        seen.add(root)
        while stack:
            node, rest = stack[-1]
            for n in rest:
                if n in nodes and n not in seen:
                    seen.add(n)
                    stack.append((n, iter(follows[n])))
                    break
            else:
                order.append(node)
                stack.pop()
    precedes: dict[int, set[int]] = {node: set() for node in nodes}
    for node in nodes:
        for n in follows[node] & nodes:
            precedes[n].add(node)
    left = set(nodes)
    for root in reversed(order):
        if root not in left:
            continue
        component, open_ends = {root}, [root]
        while open_ends:
            for n in precedes[open_ends.pop()] & left - component:
                component.add(n)
                open_ends.append(n)
        left -= component
        yield component


def _deepen_called(functions: dict[str, list[_Block]]) -> set[str]:
    """Put functions that are called inside loops inside a loop; return the calls that leave."""
    calls = [
        (name, block, callee)
        for name, blocks in functions.items()
        for block in blocks
        for callee in sorted(_callees(block, blocks, functions))
    ]
    reaches = {
        name: {callee for caller, _, callee in calls if caller == name} for name in functions
    }
    for _ in functions:
        for name in functions:
            reaches[name].update(*(reaches.get(callee, ()) for callee in set(reaches[name])))
    looped = {name for name in functions if name in reaches[name]}
    for _, block, callee in calls:
        if block.depth and callee in functions:
            looped |= {callee} | (reaches[callee] & functions.keys())
    for name in looped:
        for block in functions[name]:
            block.depth += 1
    return {callee for _, block, callee in calls if block.depth} - functions.keys()


def _callees(block: _Block, blocks: list[_Block], known: Container[str]) -> set[str]:
    """Return the functions that a block may call, or jump to at its end."""
    found: set[str] = set()
    holds: dict[str, set[str]] = {}  # register -> names whose address was put there, in this block
    for _, text in block.instructions:
        name, operands = _parts(text)
        if _CALL.match(name) or (_JUMP.match(name) and not block.targets):
            target = operands.strip('*"').split("@")[0]
            is_direct = not operands.startswith("*") and not re.match(r"[bB]l?r", name)
            found |= {target} if is_direct else holds.get(target) or _at_hand(target, blocks, known)
        else:
            for register in _written(operands):
                holds[register] = _addresses(text)
    return found


def _at_hand(target: str, blocks: list[_Block], known: Container[str]) -> set[str]:
    """Return what a register may hold that was filled in another block."""
    into: set[str] = set()
    anything: set[str] = set()
    for block in blocks:
        for _, text in block.instructions:
            names = _addresses(text)
            anything |= {name for name in names if name in known}
            if target in _written(_parts(text)[1]):
                into |= names
    return into | anything or {target}


def _written(operands: str) -> tuple[str, ...]:
    """Return the operands that may be written: the last on x86-64, the first on AArch64."""
    first, *_, last = [part.strip() for part in f"{operands},{operands}".split(",")]
    return first, last


def _addresses(text: str) -> set[str]:
    names = {name.strip('"') for match in _ADDRESS.findall(text) for name in match}
    return {name for name in names if name and not name.startswith((".", "_ZN08NumbaEnv"))}


# ------------------------------------------------------------------ the engine's kernels


def _kernel(described: dict[str, Any]) -> Kernel:
    findings = {
        name: tuple(Finding(**finding) for finding in described[name])
        for name in ("findings", "divisions")
    }
    return Kernel(**{**described, **findings, "calls": tuple(described["calls"])})


def _audit() -> list[Kernel]:
    """Run programs in this process, which must not have compiled a kernel yet."""
    for program in _programs():
        wanted = program.input
        images = np.zeros((1, wanted.channels, 8, 8), np.uint8)
        frames = np.zeros((1, wanted.num_steps, *images.shape[1:]), np.uint8)
        program.run(images, threads=1)
        program.run(frames, threads=1)
        program.stream(threads=1).push(images)
    return [kernel for name, dispatcher in _dispatchers() for kernel in _inspect(name, dispatcher)]


def _dispatchers() -> Iterator[tuple[str, Any]]:
    """Yield what Numba has compiled of this package, without what is only code inside kernels."""
    from numba.core.dispatcher import Dispatcher

    for module_name, module in sorted(sys.modules.items()):
        if not module_name.startswith("spikedriven."):
            continue
        for name, value in vars(module).items():
            is_here = isinstance(value, Dispatcher) and value.py_func.__module__ == module_name
            if is_here and not value.targetoptions.get("forceinline"):
                room = module_name.removeprefix("spikedriven.engine.ops.").removesuffix(".cpu")
                yield f"{room}.{name}", value


def _inspect(name: str, dispatcher: Any) -> Iterator[Kernel]:
    if dispatcher.stats.cache_hits:
        raise RuntimeError(
            f"{name} was loaded from {dispatcher.stats.cache_path}; only what is compiled anew can "
            "be inspected: set NUMBA_CACHE_DIR to an empty folder"
        )
    if not dispatcher.signatures:
        yield Kernel(name, "")
    for types in dispatcher.signatures:
        signature = ", ".join(_short(kind) for kind in types)
        found = inspect_loops(dispatcher.inspect_asm(types))
        yield Kernel(
            name,
            signature,
            found.loops,
            found.instructions,
            found.additions,
            tuple(Finding(name, signature, **asdict(site)) for site in found.multiplies),
            tuple(Finding(name, signature, **asdict(site)) for site in found.divisions),
            found.calls,
        )


def _short(kind: Any) -> str:
    if not hasattr(kind, "ndim"):
        return str(kind)
    return f"{kind.dtype}[{', '.join(':' * kind.ndim)}]"


# ------------------------------------------------------------------ small programs


def _programs() -> Iterator[Program]:
    """Yield programs that together call every kernel with every set of types."""
    for kind in (np.int8, np.int16):
        for leak in ((1,), (2, 3, 5)):
            yield _program(np.dtype(kind), leak)


def _program(kind: np.dtype[Any], leak: tuple[int, ...]) -> Program:
    """Return a network that has a step of each sort; its answers mean nothing."""
    width, inputs, classes = 64, 2, 3

    def weight(kernel: int, channels: int) -> Integers:
        return np.ones((kernel, kernel, channels, width), kind)

    neuron = Neuron(theta=np.full(width, 1 << 12, np.int32), leak=leak)
    bias = np.zeros(width, np.int32)

    def fires(name: str, source: str, kernel: int) -> FireStep:
        return FireStep(
            name=name, source=source, weight=weight(kernel, width), bias=bias, up=0, neuron=neuron
        )

    def streams(name: str, source: str, *, pool: bool = False, emits: str = "") -> StreamStep:
        return StreamStep(
            name=name, source=source, weight=weight(3, width), gain=np.full(width, 4, np.int32),
            bias=bias, down=2, pool=pool, begins=pool, neuron=neuron if emits else None,
            emits=emits,
        )  # fmt: skip

    def attends(name: str, gate: Neuron | None, heads: int | None) -> AttendStep:
        return AttendStep(
            name=name, query="fired", key="fired", value="fired", channels=width,
            gate=gate, dilation_heads=heads,
        )  # fmt: skip

    return Program(
        weights=kind.name,
        input=Input(
            channels=inputs, stride=4, num_steps=2, mean=(0.0,) * inputs, std=(1.0,) * inputs
        ),
        steps=(
            ImageStep(
                name="image", weight=np.ones((3, 3, inputs, width), np.int16),
                bias=np.zeros((16, width), np.int32), neuron=neuron,
            ),
            PoolStep(name="pool", source="image"),
            streams("begin", "pool", pool=True, emits="stream"),
            fires("fired", "stream", 1),
            fires("three", "stream", 3),
            attends("plain", None, None),
            attends("dilated", None, 2),
            attends("counted", neuron, None),
            attends("counted and dilated", neuron, 2),
            streams("go on", "plain", emits="further"),
            streams("end", "plain"),
            ReadoutStep(
                name="head", neuron=neuron, weight=np.ones((width, classes), np.int32),
                bias=np.zeros(classes, np.int32), scale=1.0,
            ),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    json.dump([asdict(kernel) for kernel in _audit()], sys.stdout)
