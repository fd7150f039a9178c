"""Spike-driven Transformers: build, train, audit and run them, exactly as published.

The public names are imported on first use, so that `import spikedriven` costs no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spikedriven.energy.account import energy as energy
    from spikedriven.energy.audit import audit as audit
    from spikedriven.energy.counts import count as count
    from spikedriven.engine.compile import compile as compile  # noqa: A004
    from spikedriven.engine.plan import Program as Program
    from spikedriven.models.official import load_official as load_official
    from spikedriven.models.official import to_official_state_dict as to_official_state_dict
    from spikedriven.models.registry import create_model as create_model
    from spikedriven.models.registry import list_models as list_models
    from spikedriven.models.sdt import SDTConfig as SDTConfig
    from spikedriven.models.sdt import SpikeDrivenTransformer as SpikeDrivenTransformer
    from spikedriven.nn.probe import record_spikes as record_spikes

__version__ = "0.1.0.dev0"

_HOMES = {
    "Program": "spikedriven.engine.plan",
    "SDTConfig": "spikedriven.models.sdt",
    "SpikeDrivenTransformer": "spikedriven.models.sdt",
    "audit": "spikedriven.energy.audit",
    "compile": "spikedriven.engine.compile",
    "count": "spikedriven.energy.counts",
    "create_model": "spikedriven.models.registry",
    "energy": "spikedriven.energy.account",
    "list_models": "spikedriven.models.registry",
    "load_official": "spikedriven.models.official",
    "record_spikes": "spikedriven.nn.probe",
    "to_official_state_dict": "spikedriven.models.official",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'spikedriven' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
