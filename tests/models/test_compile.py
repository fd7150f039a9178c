"""torch.compile takes the whole model, forward and backward, as one graph."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", ["compiled.py", "compiled_fused.py"])
def test_it_compiles_to_one_graph_with_the_same_numbers(script):
    if script == "compiled_fused.py":
        pytest.importorskip("triton", reason="Triton is not installed")
    script = Path(__file__).with_name(script)
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
