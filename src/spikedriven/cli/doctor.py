"""`spikedriven doctor`: what is installed, what is missing, and how to get it."""

import os
import platform
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spikedriven import __version__
from spikedriven.cli.console import say, show_json, show_table
from spikedriven.records import this_device

CORE = ("torch", "numpy", "numba", "safetensors", "rich", "jaxtyping", "jsonargparse", "PyYAML")
TRAIN = ("lightning", "scikit-learn", "tensorboard", "timm", "torchmetrics", "torchvision")


def run(options: Namespace) -> int:
    """Look around and report; exit 1 where the core cannot work."""
    versions = {name: _version(name) for name in (*CORE, *TRAIN)}
    advice = []
    if any(versions[name] is None for name in CORE):
        advice.append("pip install spikedriven")
    if any(versions[name] is None for name in TRAIN):
        advice.append('pip install "spikedriven[train]"')
    machine = {
        "spikedriven": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": this_device(),
        **_devices(),
        "kernel_cache": _cache(),
    }
    broken = any(versions[name] is None for name in CORE) or "torch_error" in machine
    if options.json:
        show_json({"machine": machine, "packages": versions, "advice": advice, "ok": not broken})
        return 1 if broken else 0
    show_table(["what", "found"], [*machine.items()])
    say()
    show_table(["package", "version"], [(k, v or "missing") for k, v in versions.items()])
    say()
    say("Everything is there." if not advice else f"Missing packages; run: {' && '.join(advice)}")
    return 1 if broken else 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, object]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"torch_error": str(error)}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"threads": torch.get_num_threads(), "gpus": ", ".join(names) or "none"}


def _cache() -> str:
    """Say whether Numba can keep compiled kernels beside the package."""
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parents[1] / "core" / "lif")
    if os.access(folder, os.W_OK):
        return "writable"
    return f"{folder} is not writable: set NUMBA_CACHE_DIR to a folder that is"
