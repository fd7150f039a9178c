"""When the CPU kernels run, and on how many threads."""

import torch
from torch import Tensor

# Independent pieces of work; more than the threads of any desktop, and never a function of them.
CHUNKS = 64


def is_for_cpu_kernels(x: Tensor) -> bool:
    """Return whether float32 or float64 numbers lie on a CPU, outside of `torch.compile`."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


def use_torch_threads() -> None:
    """Give Numba's kernels as many threads as PyTorch has."""
    from numba import config, set_num_threads

    possible: int = config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    set_num_threads(min(torch.get_num_threads(), possible))
