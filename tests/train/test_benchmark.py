"""What benchmarks/train.py calls recipe `digits` is that recipe."""

import importlib.util
import sys
from pathlib import Path

import torch

from spikedriven.train import recipe as recipe_module
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = [
    "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
    "data.image_size=8", "data.validation_fraction=0.8", "schedule.epochs=2",
]  # fmt: skip


def test_our_side_learns_to_the_last_bit_what_a_run_of_the_recipe_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("benchmark_of_training", FOLDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)
    spec.loader.exec_module(benchmark)
    tiny = load_recipe("digits", TINY)
    monkeypatch.setattr(recipe_module, "load_recipe", lambda _name: tiny)
    fit(tiny, run_dir=tmp_path / "run")
    server = benchmark.Server(benchmark.OURS, None)
    server.begin_learning()
    for number in range(2):
        found = server.epoch(number)
    assert found["images"] == len(server.validation.dataset)
    wanted = Run.open(tmp_path / "run").model().state_dict()
    for name, tensor in server.model.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
