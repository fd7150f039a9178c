"""Run by test_compile.py in its own process: the shape checks of the test session break graphs."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from spikedriven.train import module
from spikedriven.train.fit import fit, resume
from spikedriven.train.processes import this_place
from spikedriven.train.recipe import load_recipe

counter = CompileCounterWithBackend("aot_eager")  # what code it would generate is not the subject
torch_compile = torch.compile
calls = 0


def compiled(function: Any, **options: Any) -> Any:
    """Compile as the package asks, by another backend, and count the calls."""
    assert options.pop("mode") is None, "on a CPU there is no launch to spare"
    graph = torch_compile(function, backend=counter, **options)

    def called(images: torch.Tensor) -> torch.Tensor:
        global calls
        calls += 1
        found: torch.Tensor = graph(images)
        return found

    return called


class StopError(Exception):
    """What stops a run."""


def main(folder: Path, words: list[str]) -> None:
    torch.compile = compiled
    recipe = load_recipe("digits", words)
    if "stops" not in folder.name:
        fit(recipe, run_dir=folder)
    else:
        begin = module.Training.on_train_epoch_start

        def stop(self: module.Training) -> None:
            begin(self)
            if self.current_epoch == 1:
                raise StopError

        module.Training.on_train_epoch_start = stop
        try:
            fit(recipe, run_dir=folder)
        except StopError:
            module.Training.on_train_epoch_start = begin
        resume(folder)
    if this_place().rank == 0:
        text = json.dumps({"calls": calls, "graphs": counter.frame_count})
        (folder / "compiled.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
