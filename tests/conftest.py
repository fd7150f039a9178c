"""What every test stands on: fixed seeds, and a cache of kernels beside pytest's own."""

import os
from pathlib import Path

import numba
import pytest
import torch

ROOT = Path(__file__).parents[1]
if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = str(ROOT / ".pytest_cache" / "numba")


# Triton reads this when it is first imported: without a GPU its kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
