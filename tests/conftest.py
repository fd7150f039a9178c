"""What every test stands on: fixed seeds, and kernels of today.

Numba sees only that a kernel's own file has changed; without a cache per version of the files that
kernels take code or constants from, a change in `simd.py` would be tested with yesterday's kernels.
"""

import hashlib
import os
from pathlib import Path

import numba
import pytest
import torch

ROOT = Path(__file__).parents[1]
SHARED = [
    "core/simd.py",
    "core/threads.py",
    "engine/bits.py",
    "engine/plan.py",
    "engine/schedule.py",
    "engine/ops/neuron/cpu.py",
    "engine/ops/events/reference.py",
    "engine/ops/events/cpu.py",
]

_contents = b"".join((ROOT / "src/spikedriven" / name).read_bytes() for name in SHARED)
_version = hashlib.sha256(_contents).hexdigest()[:16]
if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = str(ROOT / ".pytest_cache" / "numba" / _version)


# Triton reads this when it is first imported: without a GPU its kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
