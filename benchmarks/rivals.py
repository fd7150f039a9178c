"""The dense ways to run a PyTorch module on this CPU: PyTorch itself, its compiler, OpenVINO."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Run = Callable[[], NDArray[Any]]


def by_torch(module: nn.Module, x: Tensor, threads: int) -> Run:
    """Return a call of PyTorch, compiled or not."""

    def run() -> NDArray[Any]:
        torch.set_num_threads(threads)  # Numba shares its OpenMP, and the engine has set it
        with torch.inference_mode():
            return module(x).float().numpy()

    return run


def has_openvino() -> bool:
    """Return whether OpenVINO and NNCF are here; say so where they are not."""
    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError:
        print("openvino or nncf is not installed (pip install openvino nncf): no rows of theirs")
        return False
    return True


def by_openvino(module: nn.Module, x: Tensor, threads: int) -> dict[str, Run]:
    """Return calls of OpenVINO by precision: `float32`, and `int8` as NNCF quantises it."""
    import nncf
    import openvino as ov

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # how OpenVINO traces is its own affair
        graph = ov.convert_model(module, example_input=x, input=[x.shape])
    quantised = nncf.quantize(graph, nncf.Dataset([x.numpy()]), subset_size=1)
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not quantised
    }
    core = ov.Core()
    return {
        name: _infer(core.compile_model(program, "CPU", settings).create_infer_request(), x.numpy())
        for name, program in (("float32", graph), ("int8", quantised))
    }


def _infer(request: Any, x: NDArray[Any]) -> Run:
    # Shared arrays: copying is not its work.
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)[0]


def versions() -> dict[str, str]:
    """Return the versions of whoever may run."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "numba", "openvino", "nncf"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
