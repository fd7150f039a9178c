"""A training process that is killed at random moments ends where one ends that never was."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

# Every augmentation, mixup and an optimiser with two moments: all that could depend on history.
RECIPE = [
    "digits", "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
    "data.image_size=8", "data.validation_fraction=0.5", "data.batch_size=64",
    "loss.mixup=0.5", "schedule.epochs=6", "trainer.checkpoint_every=1",
]  # fmt: skip
LONGEST_WAIT = 120.0
"""Seconds within which a process on a busy machine must write a checkpoint."""


def start(log: Path, *words: str) -> subprocess.Popen[bytes]:
    single = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, sys.path))
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "spikedriven", "train", *words],
            env={**os.environ, **single, "PYTHONPATH": path},
            stdout=said,
            stderr=said,
        )


def written(folder: Path) -> int:
    state = folder / "checkpoints/last.ckpt"
    return state.stat().st_mtime_ns if state.exists() else 0


def kill_after_some_checkpoints(process, folder: Path, rng: random.Random) -> bool:
    """Wait for one to three states and a moment more; return whether the process was killed."""
    for _ in range(rng.randint(1, 3)):
        before, began = written(folder), time.monotonic()
        while written(folder) == before and process.poll() is None:
            assert time.monotonic() - began < LONGEST_WAIT
            time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))  # a step takes some 20 ms: it falls anywhere in one
    process.kill()
    return process.wait() == -9


def assert_kills_leave_no_trace(tmp_path: Path, kills: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    log = tmp_path / "log"
    assert start(log, *RECIPE, "--run", str(whole)).wait() == 0, log.read_text()
    rng = random.Random(kills)
    assert kill_after_some_checkpoints(start(log, *RECIPE, "--run", str(cut)), cut, rng)
    for _ in range(kills - 1):
        assert kill_after_some_checkpoints(start(log, "--resume", str(cut)), cut, rng)
    assert start(log, "--resume", str(cut)).wait() == 0, log.read_text()
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    for which in ("last", "best"):
        one, other = (load_file(run / f"checkpoints/{which}.safetensors") for run in (whole, cut))
        assert one.keys() == other.keys()
        assert all(bool((one[name] == other[name]).all()) for name in one)


def test_two_kills_leave_no_trace(tmp_path):
    assert_kills_leave_no_trace(tmp_path, 2)


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path):
    assert_kills_leave_no_trace(tmp_path, 10)
