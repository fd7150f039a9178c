"""Counts of a dataset that two processes share are those of one process, to the last unit."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.data import Place
from spikedriven.energy.account import CONVENTIONS, energy

from .counted_apart import LENGTHS, RANKS, counted

CONFIG = sd.SDTConfig(1, 16, 3, in_channels=2, num_heads=2, num_steps=3, stem_pool="0011")
PATIENCE = 120
"""Seconds; two processes take some five."""


def figures(counts):
    return {name: layer.steps for name, layer in counts.layers.items()}


@pytest.fixture(scope="module")
def subject():
    """A model in double precision, whose spikes do not depend on the batch, and its images."""
    model = lively(CONFIG).double()
    return model, torch.randint(0, 256, (max(LENGTHS), 2, 8, 12)).double() / 255


@pytest.fixture(scope="module")
def found(subject, tmp_path_factory):
    """Process -> dataset -> its own counts, and what it was told of both."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(subject, folder / "subject.pt")
    script = Path(__file__).with_name("counted_apart.py")
    single = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, sys.path))
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            env={**os.environ, **single, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(RANKS)]


@pytest.mark.parametrize("dataset", range(len(LENGTHS)), ids=[f"{n} images" for n in LENGTHS])
def test_two_processes_count_what_one_counts(subject, found, dataset):
    model, images = subject
    whole = counted(model, images[: LENGTHS[dataset]], Place())
    own = [process[dataset][0].images for process in found]
    assert own == [-(-LENGTHS[dataset] // 2), LENGTHS[dataset] // 2]
    for process in found:
        together = process[dataset][1]
        assert figures(together) == figures(whole)
        assert together.images == whole.images == whole.frames == LENGTHS[dataset]
        assert together == whole
        for convention in CONVENTIONS:
            assert energy(together, convention).lines == energy(whole, convention).lines


def test_gathering_leaves_a_process_its_own_counts(found):
    firsts = [process[0] for process in found]
    assert firsts[0][0].additions != firsts[0][1].additions
    total = [sum(own.additions.values()) for own, _ in firsts]
    assert sum(total) == sum(firsts[0][1].additions.values())


def test_a_process_alone_gathers_its_own(subject):
    model, images = subject
    counts = counted(model, images, Place())
    alone = counts.gathered()
    assert figures(alone) == figures(counts)
    alone.add(counts)
    assert alone.images == 2 * counts.images == 2 * max(LENGTHS)
