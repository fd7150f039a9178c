"""The audit of the machine code, on planted multiplications; then the engine's own kernels."""

import platform
import sys
from dataclasses import replace

import numpy as np
import pytest
from numba import njit, prange
from tests.helpers.processors import PROCESSORS

from spikedriven.engine import purity, run
from spikedriven.engine.purity import (
    Finding,
    Kernel,
    audit_engine,
    inspect_loops,
    multiplies_in_loops,
)
from spikedriven.errors import BackendError

FLOATS, INTEGERS = np.ones(64, np.float32), np.ones(64, np.int32)


def assembly_of(function, *arguments):
    function(*arguments)
    return function.inspect_asm(function.signatures[0])


def names(sites):
    return [site.instruction.split()[0] for site in sites]


# ------------------------------------------------------------------ planted in Python


def test_a_float_multiplication_in_a_loop_is_caught():
    @njit
    def planted(x, factor):
        for i in range(x.size):
            x[i] = x[i] * factor

    found = names(multiplies_in_loops(assembly_of(planted, FLOATS.copy(), np.float32(3))))
    assert any("mul" in name for name in found)


def test_a_fused_multiplication_and_addition_in_a_loop_is_caught():
    @njit(fastmath=True)
    def planted(x, y):
        total = np.float32(0)
        for i in range(x.size):
            total += x[i] * y[i]
        return total

    assert multiplies_in_loops(assembly_of(planted, FLOATS, FLOATS))


def test_an_integer_vector_multiplication_in_a_loop_is_caught():
    @njit
    def planted(x, y):
        for i in range(x.size):
            x[i] = x[i] * y[i]

    assert multiplies_in_loops(assembly_of(planted, INTEGERS.copy(), INTEGERS))


def test_a_multiplication_in_a_parallel_loop_is_caught():
    @njit(parallel=True)
    def planted(x, factor):
        for i in prange(x.size):
            x[i] = x[i] * factor

    assert multiplies_in_loops(assembly_of(planted, FLOATS.copy(), np.float32(3)))


def test_an_address_that_is_multiplied_in_a_loop_is_caught():
    @njit
    def planted(x, rows):
        total = 0
        for row in rows:
            total += x[row, 0]
        return total

    x = np.ones((8, 8), np.int64)
    assert multiplies_in_loops(assembly_of(planted, x, np.array([5, 2, 7])))


def test_a_multiplication_outside_of_the_loops_passes():
    @njit
    def innocent(x, factor):
        step = factor * x.size
        for i in range(x.size):
            x[i] += step
        return step

    found = inspect_loops(assembly_of(innocent, INTEGERS.copy(), 3))
    assert found.loops
    assert found.additions
    assert not found.multiplies


def test_a_multiplication_once_per_thread_passes():
    @njit(parallel=True)
    def innocent(x, factor):
        step = factor * factor
        for i in prange(x.size):
            x[i] += step

    found = inspect_loops(assembly_of(innocent, INTEGERS.copy(), 3))
    assert found.additions
    assert not found.multiplies


# ------------------------------------------------------------------ written by hand

# f: a multiplication before the loop, one inside it, one after it.
COUNTED = """
f:
    imulq   %rsi, %rdi
.LBB0_1:
    {}
    decq    %rdi
    jne     .LBB0_1
    imulq   %rsi, %rax
    retq
"""

MULTIPLY = """
imull %eax, %ecx | imulq $40, 8(%rsp), %rax | mulq %rcx | mulxq %rax, %rcx, %rdx
mulsd %xmm1, %xmm0 | vmulps %zmm1, %zmm0, %zmm0 | pmullw %xmm1, %xmm0 | vpmulld %ymm1, %ymm0, %ymm0
vpmuludq %zmm1, %zmm0, %zmm0 | vpmullq (%rax), %zmm0, %zmm0 | vpmaddwd %zmm1, %zmm0, %zmm0
vpmaddubsw %zmm1, %zmm0, %zmm0 | vpmadd52luq %zmm1, %zmm0, %zmm0 | vpdpbusd %zmm2, %zmm1, %zmm0
vfmadd231ps %zmm2, %zmm1, %zmm0 | vfnmadd213sd %xmm2, %xmm1, %xmm0 | vfmsub132ps %ymm2, %ymm1, %ymm0
vdpps $1, %xmm2, %xmm1, %xmm0 | lock imulq %rax, %rcx | {evex} vmulps %xmm1, %xmm0, %xmm0
mul x0, x1, x2 | madd x0, x1, x2, x3 | msub w0, w1, w2, w3 | mneg x0, x1, x2 | smull x0, w1, w2
umulh x0, x1, x2 | umaddl x0, w1, w2, x3 | mul v0.4s, v1.4s, v2.4s | mla v0.8h, v1.8h, v2.h[1]
mls v0.4s, v1.4s, v2.4s | smlal2 v0.4s, v1.8h, v2.8h | sqdmulh v0.4s, v1.4s, v2.4s
sdot v0.4s, v1.16b, v2.16b | udot v0.4s, v1.16b, v2.16b | usmmla v0.4s, v1.16b, v2.16b
fmul s0, s1, s2 | fmadd s0, s1, s2, s3 | fnmsub d0, d1, d2, d3 | fmla v0.4s, v1.4s, v2.4s
mad z0.s, p0/m, z1.s, z2.s | fnmad z0.s, p0/m, z1.s, z2.s
"""

INNOCENT = """
addq %rax, %rcx | leaq (%rax,%rax,8), %rcx | shlq $6, %rax | idivq %rcx | vpaddb %zmm1, %zmm0, %zmm0
vpsubw (%rax), %zmm0, %zmm0 | vpsrad $1, %zmm0, %zmm0 | vpsadbw %zmm1, %zmm0, %zmm0
vpcompressw %zmm0, %zmm1 {%k1} | vpmovsxwd %ymm0, %zmm0 | popcntq %rax, %rcx
vpmaxsd %zmm1, %zmm0, %zmm0 | vaddps %zmm1, %zmm0, %zmm0 | movq imul(%rip), %rax
add v0.16b, v1.16b, v2.16b | add x0, x1, x2, lsl #6 | ldp x0, x1, [sp] | sdiv x0, x1, x2
cnt v0.8b, v0.8b | fadd s0, s1, s2
"""


def listed(table):
    return [entry.strip() for line in table.strip().splitlines() for entry in line.split("|")]


@pytest.mark.parametrize("instruction", listed(MULTIPLY))
def test_every_kind_of_multiplication_is_caught_in_the_loop_alone(instruction):
    (site,) = multiplies_in_loops(COUNTED.format(instruction))
    assert (site.line, site.depth) == (5, 1)
    assert instruction.endswith(site.instruction)


@pytest.mark.parametrize("instruction", listed(INNOCENT))
def test_what_multiplies_nothing_passes(instruction):
    assert not multiplies_in_loops(COUNTED.format(instruction))


def test_loops_on_aarch64_are_found():
    assembly = """
    f:
        madd x8, x1, x2, x3
    .LBB0_1:
        mov x9, #8              // a comment
    .LBB0_2:
        ldr q0, [x0], #16
        add v1.16b, v1.16b, v0.16b
        subs x9, x9, #1
        b.ne .LBB0_2
        smull x4, w5, w6
        cbnz x8, .LBB0_1
        mul x0, x0, x1
        ret
    """
    found = inspect_loops(assembly)
    assert (found.loops, found.additions, names(found.multiplies)) == (2, 1, ["smull"])


def test_depth_counts_the_loops_around():
    assembly = """
    f:
    .LBB0_1:
        imulq %rax, %rax
    .LBB0_2:
        imulq %rcx, %rcx
        jne .LBB0_2
        jmp .LBB0_1
    """
    assert [site.depth for site in multiplies_in_loops(assembly)] == [1, 2]


def test_a_loop_with_two_entries_is_a_loop():
    assembly = """
    f:
        je .LBB0_2
    .LBB0_1:
        imulq %rax, %rax
    .LBB0_2:
        jne .LBB0_1
        retq
    """
    assert names(multiplies_in_loops(assembly)) == ["imulq"]


def test_a_loop_through_a_jump_table_is_a_loop():
    assembly = """
    f:
    .LBB0_1:
        jmpq *.LJTI0_0(,%rax,8)
    .LBB0_2:
        imulq %rax, %rax
        jmp .LBB0_1
    .LBB0_3:
        retq
        .section .rodata
    .LJTI0_0:
        .quad .LBB0_2
        .quad .LBB0_3
    """
    register = assembly.replace(".LJTI0_0(,%rax,8)", "%rax")
    assert names(multiplies_in_loops(assembly)) == names(multiplies_in_loops(register)) == ["imulq"]


CALLS = """
g:
    imulq %rdi, %rdi
    retq
f:
    {before}
.LBB1_1:
    {call}
    decq %rbx
    jne .LBB1_1
    retq
"""


@pytest.mark.parametrize(
    ("before", "call"),
    [
        ("nop", "callq g"),
        ("nop", "callq g@PLT"),
        ("movabsq $g, %rax", "callq *%rax"),
        ("movabsq $g, %rax\n movq %rax, 8(%rsp)", "movq 8(%rsp), %rcx\n callq *%rcx"),
        ("nop", "bl g"),
        ("adrp x8, :got:g\n ldr x8, [x8, :got_lo12:g]", "blr x8"),
    ],
)
def test_a_function_that_a_loop_calls_lies_inside_the_loop(before, call):
    assert multiplies_in_loops(CALLS.format(before=before, call=call))


def test_a_function_called_before_the_loop_lies_outside():
    assert not multiplies_in_loops(CALLS.format(before="callq g", call="nop"))


def test_a_register_calls_what_was_last_put_into_it():
    before = "movabsq $g, %rax\n callq *%rax"
    found = inspect_loops(CALLS.format(before=before, call="movabsq $memset, %rax\n callq *%rax"))
    assert (found.multiplies, found.calls) == ((), ("memset",))


def test_calls_that_leave_the_assembly_are_named():
    assert inspect_loops(CALLS.format(before="nop", call="callq memset@PLT")).calls == ("memset",)
    loaded = CALLS.format(before="movabsq $memset, %rax", call="callq *%rax")
    assert inspect_loops(loaded).calls == ("memset",)


def test_a_function_that_calls_itself_is_a_loop():
    assert multiplies_in_loops("f:\n imulq %rax, %rax\n callq f\n retq")


def test_numbas_loop_over_a_threads_shares_is_none():
    assembly = COUNTED.replace("f:", "__gufunc__.f:")
    assert not multiplies_in_loops(assembly.format("imulq %rax, %rax"))


@pytest.mark.parametrize(
    "before", ["nop", ""], ids=["with a head of its own", "with the same head"]
)
def test_a_loop_inside_the_loop_over_a_threads_shares_is_one(before):
    assembly = COUNTED.replace("f:", "__gufunc__.f:")
    inner = f"{before}\n.LBB0_2:\n imulq %rax, %rax\n jne .LBB0_2"
    assert names(multiplies_in_loops(assembly.format(inner))) == ["imulq"]


# ------------------------------------------------------------------ what proves something

READ = Kernel("ops.add", "int32[:]", loops=1, instructions=3, calls=("_memset", "memcpy"))


def test_a_kernel_that_was_read_whole_is_proved():
    assert READ.is_proved
    assert not READ.objection


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"signature": ""}, "was not compiled"),
        ({"loops": 0}, "has no loop that was found"),
        ({"calls": ("memset", "cblas_sgemm")}, "calls what was not read: cblas_sgemm"),
    ],
)
def test_a_kernel_that_was_not_read_whole_proves_nothing(change, objection):
    kernel = replace(READ, **change)
    assert kernel.objection == objection
    assert not kernel.is_proved


def test_a_kernel_that_multiplies_is_not_proved():
    finding = Finding("ops.add", "int32[:]", "imull %eax, %ecx", 3, 1)
    assert not replace(READ, findings=(finding,)).is_proved


def as_child(monkeypatch, tmp_path, code):
    """Let the process that compiles the kernels run some code instead."""
    child = tmp_path / "child"
    child.write_text(f"#!{sys.executable}\n{code}")
    child.chmod(0o755)
    monkeypatch.setattr(purity.sys, "executable", str(child))


def test_a_process_that_fails_is_a_sentence_and_a_note(monkeypatch, tmp_path):
    as_child(monkeypatch, tmp_path, "raise ValueError('no vectors here')")
    with pytest.raises(
        BackendError, match=r"ended with 1 \(ValueError: no vectors here\)"
    ) as raised:
        audit_engine()
    assert "\n" not in str(raised.value)
    assert "Traceback" in raised.value.__notes__[0]


def test_no_kernel_at_all_is_refused(monkeypatch, tmp_path):
    as_child(monkeypatch, tmp_path, "print('[]')")
    with pytest.raises(BackendError, match="no kernel was compiled"):
        audit_engine()


# ------------------------------------------------------------------ the engine


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return audit_engine()


def test_every_kernel_of_the_engine_was_compiled_and_read(kernels):
    assert kernels
    assert [(kernel.name, kernel.objection) for kernel in kernels if kernel.objection] == []


def test_the_loops_that_add_were_read(kernels):
    adding = [kernel for kernel in kernels if kernel.name.startswith("synapse.")]
    assert adding
    assert all(kernel.additions >= 50 for kernel in adding)
    assert any(kernel.additions >= 50 for kernel in kernels if kernel.name.startswith("image."))


def test_no_kernel_of_the_engine_multiplies_in_a_loop(kernels):
    found = [finding for kernel in kernels for finding in kernel.findings]
    assert not found, f"{len(found)} multiplications, among them {found[:3]}"


def test_only_kernels_that_make_arrays_count_references():
    """An atomic addition by a far call: in a loop it costs more than the loop's own work."""
    kernels = dict(purity._dispatchers())
    assert kernels["synapse._gather_block"] is run.synapse._gather_block
    counting = {name for name, kernel in kernels.items() if kernel.targetoptions.get("_nrt", True)}
    engines = {name for name in counting if not name.startswith("spikedriven.")}
    assert engines == {"events._list_task", "events._merge_task", "synapse._run_task"}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other names")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_nor_does_it_on_a_lesser_processor(processor, monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", processor)
    monkeypatch.setenv("NUMBA_CPU_FEATURES", PROCESSORS[processor])
    found = [finding for kernel in audit_engine() for finding in kernel.findings]
    assert not found, f"{len(found)} multiplications, among them {found[:3]}"
