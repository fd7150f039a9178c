"""Compiled kernels are kept per version of the files that they take code or constants from.

Numba sees only that a kernel's own file has changed; without this, a change in `simd.py` would be
tested with yesterday's kernels.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
import torch

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "src" / "spikedriven" / "engine"
SHARED = [
    "simd.py", "bits.py", "plan.py", "schedule.py", "ops/neuron/cpu.py", "ops/events/reference.py"
]  # fmt: skip

_version = hashlib.sha256(b"".join((ENGINE / name).read_bytes() for name in SHARED)).hexdigest()
if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = str(ROOT / ".pytest_cache" / "numba" / _version[:16])


@pytest.fixture(autouse=True, scope="package")
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run a test with one thread and with two."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(request.param, numba.config.NUMBA_NUM_THREADS))
    yield numba.get_num_threads()
    numba.set_num_threads(before)
