"""A compiled step is the step: the same run, the same files, one graph, and probes that see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_processes import TINY, environment, free_port

from spikedriven import create_model
from spikedriven.errors import BackendError
from spikedriven.nn.probe import count_spikes
from spikedriven.train.module import Training
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run

WORDS = [*TINY, "data.batch_size=32"]  # 719 images: 22 whole batches and a part
BATCHES, COUNTED = 22, 2  # of these the first and the 21st are counted, and not compiled


def run(folder: Path, *words: str) -> dict[str, int]:
    """Train in a process of its own; return calls of the graph and how many graphs there were."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py")), str(folder), *words],
        env=environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "compiled.json").read_text())


def rows(folder: Path) -> list[list[float]]:
    _head, *lines = (folder / "metrics.csv").read_text().splitlines()
    return [[float(cell) for cell in line.split(",") if cell] for line in lines]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "plain"
    assert run(folder, *WORDS) == {"calls": 0, "graphs": 0}
    return folder


@pytest.mark.parametrize("name", ["whole", "stops"])
def test_a_compiled_run_is_the_run_in_one_graph_and_resumes(plain, tmp_path, name):
    folder = tmp_path / name
    found = run(folder, *WORDS, "trainer.compile=true")
    assert found["calls"] == 2 * (BATCHES - COUNTED)
    assert found["graphs"] == 1  # neither probes nor a model read anew make another
    assert_the_same_run(plain, folder)


def assert_the_same_run(plain: Path, folder: Path) -> None:
    for one, other in zip(rows(plain), rows(folder), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    kept, ours = (load_file(f / "checkpoints/last.safetensors") for f in (plain, folder))
    assert kept.keys() == ours.keys()
    for key, tensor in kept.items():
        assert torch.allclose(ours[key], tensor, atol=1e-7), key
    Run.open(folder).model()  # by its own names


class OnCard:
    """A batch that says that it lies on a GPU."""

    is_cuda = True

    def __len__(self) -> int:
        return 64


def test_a_gpu_replays_whole_batches_as_one_launch_and_what_is_watched_runs_as_it_is(monkeypatch):
    asked = []

    def compiled(function, **options):
        asked.append((function, options))
        return lambda images: images

    monkeypatch.setattr(torch, "compile", compiled)
    recipe = load_recipe("digits", ["trainer.compile=true", "data.batch_size=64"])
    training = Training(create_model("sdt_tiny"), recipe)
    names = list(training.state_dict())
    batch = OnCard()
    assert training._steps(batch) is training._steps(batch) is batch
    one_graph = {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead"}
    assert asked == [(training.model.forward_steps, one_graph)]
    assert list(training.state_dict()) == names
    x = torch.rand(64, 1, 16, 16)
    with count_spikes(training.model) as counts:
        assert training._steps(x).shape == (4, 64, 10)
    assert all(count.sites for count in counts.values())
    assert training._steps(x[:63]).shape == (4, 63, 10)


def test_a_compiler_that_does_not_work_is_named_with_the_setting_that_asks_for_it(monkeypatch):
    torch_compile = torch.compile

    def broken(*_given):
        raise RuntimeError("No working C++ compiler found\nby any name")

    monkeypatch.setattr(
        torch, "compile", lambda *_given, **_options: torch_compile(torch.neg, backend=broken)
    )
    recipe = load_recipe("digits", ["trainer.compile=true", "data.batch_size=64"])
    training = Training(create_model("sdt_tiny"), recipe)
    with pytest.raises(BackendError, match=r"trainer.compile .*C\+\+ compiler found\); it must"):
        training._steps(torch.rand(64, 1, 16, 16))


def test_two_processes_compile_too(tmp_path):
    words = [*TINY, "data.batch_size=32", "trainer.devices=2"]
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    run(plain, *words)
    found = run(compiled, *words, "trainer.compile=true")
    assert found["calls"] > 0
    assert_the_same_run(plain, compiled)
