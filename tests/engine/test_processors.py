"""Other processors compute the same bits: programs run where LLVM may use AVX2 or SSE only."""

import os
import platform
import subprocess
import sys

import numba
import numpy as np
import pytest
from tests.helpers.lively import lively, some_images
from tests.helpers.processors import PROCESSORS

import spikedriven as sd

CODE = """
import numpy as np, spikedriven as sd
from spikedriven.engine.ops.synapse import cpu
from spikedriven.core.simd import has_compress
assert not has_compress()
x = np.load("x.npy")
for weights in ("int8", "int16"):
    scores, _ = sd.Program.load(f"{weights}.spk").engine.scores(x)
    np.save(f"{weights}.npy", scores)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other names")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_lesser_processor_computes_the_same_scores(processor, tmp_path):
    model = lively(sd.SDTConfig(1, 72, 7, stem_pool="0011"))
    x = some_images(3, 3, 12, 16)
    np.save(tmp_path / "x.npy", x)
    programs = {weights: sd.compile(model, weights) for weights in ("int8", "int16")}
    for weights, program in programs.items():
        program.save(tmp_path / f"{weights}.spk")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": PROCESSORS[processor],
        "NUMBA_CACHE_DIR": numba.config.CACHE_DIR,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for weights, program in programs.items():
        here, _ = program.engine.scores(x)
        assert np.array_equal(np.load(tmp_path / f"{weights}.npy"), here)
        assert len(np.unique(here.sum(axis=0), axis=0)) > 1
