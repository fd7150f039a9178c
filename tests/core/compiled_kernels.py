"""Run by test_triton.py in its own process: there Triton compiles, where the tests interpret."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spikedriven.core.attention import triton as attention
from spikedriven.core.lif import triton as lif
from spikedriven.core.synapse import triton as synapse

HOPPER = GPUTarget("cuda", 90, 32)
SINGLE = {"mean", "var", "weight", "bias", "partial", "mean_di", "mean_dot", "decay", "counts",
          "gate", "d_gate"}  # fmt: skip
SIZES = {"rows", "cols", "per_program", "programs", "tokens", "height", "width"}
TILE = {"ROWS": 8, "COLS": 128, "REAL": tl.float32}
NEURON = {"EPS": 1e-5, "THRESHOLD": 1.0, "ALPHA": 4.0, "STEPS": 4, "REPEATS": False}
ALL = {"NORMS": True, "ADDS": True, "SUMS": True, "WRITES": True, "LEARNS": True}
KERNELS = [
    (lif._moments_kernel, {}),
    (lif._fold_moments_kernel, {}),
    (lif._fire_kernel, {}),
    (lif._fire_kernel, {"ADDS": False, "REPEATS": True}),
    (lif._fire_kernel, {"ADDS": False, "NORMS": False, "STEPS": 32, "ROWS": 2}),
    (lif._fire_backward_kernel, {}),
    (lif._fire_backward_kernel, {"ADDS": False, "WRITES": False}),
    (lif._fire_backward_kernel, {"ADDS": False, "SUMS": False, "LEARNS": False, "REPEATS": True}),
    (lif._fire_backward_kernel, {"ADDS": False, "NORMS": False, "STEPS": 16, "ROWS": 2}),
    (lif._norm_backward_kernel, {}),
    (attention._agreement_kernel, {}),
    (attention._agreement_backward_kernel, {}),
    (attention._mask_kernel, {}),
    (attention._mask_backward_kernel, {}),
    (synapse._pack_kernel, {}),
    (synapse._unpack_kernel, {}),
    (synapse._pool_kernel, {}),
    (synapse._pool_backward_kernel, {}),
]


def kind(name: str, kernel: object) -> str:
    if name.isupper():
        return "constexpr"
    if name.endswith("bits") or name == "winners":
        return "*u8"
    if name in SINGLE or (name == "d" and kernel is attention._agreement_backward_kernel):
        return "*fp32"
    return "i32" if name in SIZES else "*bf16"


def main() -> None:
    for kernel, change in KERNELS:
        names = kernel.arg_names
        signature = {name: kind(name, kernel) for name in names}
        values = NEURON | ALL | TILE | change
        constants = {name: values[name] for name in names if name.isupper()}
        done = triton.compile(ASTSource(kernel, signature, constants), target=HOPPER)
        assert "cubin" in done.asm, kernel


if __name__ == "__main__":
    main()
