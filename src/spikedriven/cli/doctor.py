"""`spikedriven doctor`: what is installed, what is missing, and how to get it."""

import platform
from argparse import Namespace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from spikedriven import __version__
from spikedriven.cli.console import say, show_json, show_table
from spikedriven.records import this_device

CORE = ("torch", "numpy", "numba", "safetensors", "rich", "jaxtyping", "jsonargparse", "PyYAML")
TRAIN = (
    "lightning",
    "pillow",
    "scikit-learn",
    "tensorboard",
    "timm",
    "torchmetrics",
    "torchvision",
)
REPORT = ("matplotlib",)
EXPORT = ("huggingface-hub", "nir", "onnx", "onnxscript")
HUGGING_FACE = ("datasets",)


def run(options: Namespace) -> int:
    """Look around and report; exit 1 where the core cannot work."""
    versions = {name: _version(name) for name in (*CORE, *TRAIN, *REPORT, *EXPORT, *HUGGING_FACE)}
    advice = []
    if any(versions[name] is None for name in CORE):
        advice.append("pip install spikedriven")
    if any(versions[name] is None for name in TRAIN):
        advice.append('pip install "spikedriven[train]"')
    if any(versions[name] is None for name in REPORT):
        advice.append('pip install "spikedriven[report]"')
    if any(versions[name] is None for name in EXPORT):
        advice.append('pip install "spikedriven[export]"')
    if any(versions[name] is None for name in HUGGING_FACE):
        advice.append('pip install "spikedriven[huggingface]"')
    machine = {
        "spikedriven": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": this_device(),
        **_devices(),
    }
    missing = any(versions[name] is None for name in CORE)
    problem = None if missing else _problem()
    machine["kernel_cache"] = _cache() if problem is None and not missing else "unknown"
    broken = missing or problem is not None
    if options.json:
        show_json(
            {
                "machine": machine,
                "packages": versions,
                "problem": problem,
                "advice": advice,
                "ok": not broken,
            }
        )
        return 1 if broken else 0
    show_table(["what", "found"], [*machine.items()])
    say()
    show_table(["package", "version"], [(k, v or "missing") for k, v in versions.items()])
    say()
    if problem is not None:
        say(f"The core cannot work: {problem}")
    elif advice:
        say(f"Missing packages; run: {' && '.join(advice)}")
    else:
        say("Everything is there.")
    return 1 if broken else 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, object]:
    try:
        import torch
    except (ImportError, OSError):  # a library of it cannot be loaded: `_problem` says so
        return {}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names += ["MPS"] if torch.backends.mps.is_available() else []
    return {"threads": torch.get_num_threads(), "gpus": ", ".join(names) or "none"}


def _problem() -> str | None:
    """Load what the core stands on; say in a sentence what does not load, if anything."""
    for module in ("torch", "numpy", "safetensors", "spikedriven.core.lif.cpu"):
        try:
            import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            cure = (
                "set NUMBA_CACHE_DIR to a writable folder"
                if "locator" in reason
                else "pip install --force-reinstall spikedriven"
            )
            return f"{module} does not load ({reason}); it must: {cure}"
    return None


def _cache() -> str:
    """Return the folder in which Numba keeps compiled kernels: it found it to be writable."""
    from numba.core.dispatcher import Dispatcher

    from spikedriven.core.lif import cpu

    kernels = [value for value in vars(cpu).values() if isinstance(value, Dispatcher)]
    return str(kernels[0].stats.cache_path)
