"""Several processes: together they are one with a larger batch, and none counts twice."""

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spikedriven.core.lif import Norm
from spikedriven.core.norm import synced_batch_norm
from spikedriven.data import EpochSampler, PartSampler, Place
from spikedriven.errors import BackendError, ConfigError
from spikedriven.train.processes import check_processes
from spikedriven.train.recipe import load_recipe

TINY = [
    "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
    "data.image_size=8", "data.validation_fraction=0.5", "schedule.epochs=2",
    "trainer.precision=64-true", "trainer.accelerator=cpu",
]  # fmt: skip
SUMMATION = 1e-8
"""What the order of float64 sums may leave after twelve steps. A convolution's bias in front of a
batch norm has no gradient but rounding, which AdamW divides by itself: it alone comes near this."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    single = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, **single, "PYTHONPATH": path, **more}


def train(*words: str, start=("-m", "spikedriven"), **more: str):
    return subprocess.run(
        [sys.executable, *start, "train", *words],
        env=environment(MASTER_ADDR="127.0.0.1", **more), capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    done = train("digits", *TINY, "data.batch_size=128", "--run", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def assert_the_same_run(one: Path, two: Path) -> None:
    first, second = (load_file(run / "checkpoints/last.safetensors") for run in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor, second[name], rtol=0, atol=SUMMATION), name
    a, b = (json.loads((run / "metrics.json").read_text()) for run in (one, two))
    assert a["test_count"] == b["test_count"] == sum(chain(*b["confusion"])) == 360
    assert a["confusion"] == b["confusion"]
    assert a["firing_rates"] == b["firing_rates"]
    columns = "validation_accuracy"
    tables = [(run / "metrics.csv").read_text().splitlines() for run in (one, two)]
    found = [[row.split(",")[rows[0].split(",").index(columns)] for row in rows] for rows in tables]
    assert found[0] == found[1]


def test_two_processes_are_one_with_twice_the_batch(one, tmp_path):
    """719 images by 128: the last batch of 79 is divided into 40 and 39."""
    words = [*TINY, "data.batch_size=64", "trainer.devices=2", "trainer.sync_batch_norm=true"]
    done = train("digits", *words, "--run", str(tmp_path / "two"), MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == done.stdout.count("Test accuracy") == 1
    assert_the_same_run(one, tmp_path / "two")


@pytest.mark.slow
def test_torchrun_starts_them_too(one, tmp_path):
    words = [*TINY, "data.batch_size=64", "trainer.devices=2", "trainer.sync_batch_norm=true"]
    start = (
        "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
        "-m", "--", "spikedriven",  # else torchrun takes our --run for a part of its --run-path
    )  # fmt: skip
    done = train("digits", *words, "--run", str(tmp_path / "two"), start=start)
    assert done.returncode == 0, done.stderr
    assert_the_same_run(one, tmp_path / "two")


@pytest.mark.slow
def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = train(
            "digits", *TINY, "trainer.devices=2", "--run", str(tmp_path / "run"),
            MASTER_PORT=str(port),
        )  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: port {port} is in use;")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 7, 24, 25, 26, 29])
def test_a_common_batch_is_that_of_one_process_divided(length, ranks):
    size = 4
    parts = [EpochSampler(length, 3, size, Place(rank, ranks)) for rank in range(ranks)]
    alone = EpochSampler(length, 3, size * ranks)
    for sampler in (*parts, alone):
        sampler.set_epoch(2)
    order, given = list(alone), [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(part) for part in given]
    steps = {-(-len(part) // size) for part in given}
    assert len(steps) == 1  # no process waits for another
    for step in range(steps.pop()):
        batches = [part[step * size : (step + 1) * size] for part in given]
        common = order[step * size * ranks : (step + 1) * size * ranks]
        assert list(chain(*batches)) == common
        weights = [part.weight(step) for part in parts]
        # The mean over processes of weighted means is the mean over the common batch.
        means = [w * np.mean([i for _, i in b]) for w, b in zip(weights, batches, strict=True)]
        assert np.mean(means) == pytest.approx(np.mean([index for _, index in common]))
    assert length - sum(map(len, given)) < ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 10])
def test_every_sample_is_counted_by_exactly_one_process(length, ranks):
    parts = [PartSampler(length, Place(rank, ranks)) for rank in range(ranks)]
    given = [list(part) for part in parts]
    assert len({len(part) for part in given}) == 1
    own = [part[: sampler.own] for part, sampler in zip(given, parts, strict=True)]
    assert list(chain(*own)) == list(range(length))


def test_a_sampler_continues_behind_the_batches_that_were_given_out():
    for place in (Place(), Place(1, 2)):
        whole, cut = (EpochSampler(50, 1, 8, place) for _ in range(2))
        cut.begin_at(1, 2)
        for epoch, first in ((0, 0), (1, 16), (2, 0)):
            whole.set_epoch(epoch)
            cut.set_epoch(epoch)
            assert list(cut) == list(whole)[first:]
            assert len(cut) == len(whole)


def test_alone_a_synced_norm_is_a_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (
        synced_batch_norm,
        lambda x, n: torch.nn.functional.batch_norm(
            x, n.running_mean, n.running_var, n.weight, n.bias, True, n.momentum, n.eps
        ),
    ):
        norm = Norm(
            weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True),
            bias=torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64, requires_grad=True),
            running_mean=torch.zeros(3, dtype=torch.float64),
            running_var=torch.ones(3, dtype=torch.float64),
            training=True,
        )
        y = function(x, norm)
        grads = torch.autograd.grad((y * x.detach().cos()).sum(), (x, norm.weight, norm.bias))
        results.append((y, norm.running_mean, norm.running_var, *grads))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)  # float64 sums of 120 values


def test_devices_that_are_not_there_are_refused(monkeypatch):
    def trainer(*settings):
        return load_recipe("digits", settings).trainer

    with pytest.raises(BackendError, match="999 processes on the CPU"):
        check_processes(trainer("trainer.devices=999", "trainer.accelerator=cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(BackendError, match=r"4 GPUs are asked for and 3 .* set trainer.devices=3"):
        check_processes(trainer("trainer.devices=4", "trainer.accelerator=gpu"))
    with pytest.raises(BackendError, match=r"4 GPUs are asked for and 3"):
        check_processes(trainer("trainer.devices=4"))  # by `auto`, which takes the GPUs
    check_processes(trainer("trainer.devices=3"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="999 processes on the CPU"):
        check_processes(trainer("trainer.devices=999"))
    with pytest.raises(ConfigError, match=r"3 machines .* torchrun --nnodes 3 .*-node 2 -m"):
        check_processes(trainer("trainer.devices=2", "trainer.nodes=3"))
    monkeypatch.setenv("WORLD_SIZE", "6")
    check_processes(trainer("trainer.devices=2", "trainer.nodes=3"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes were started .* asks for 1"):
        check_processes(trainer())
    with pytest.raises(ConfigError, match="there is one process"):
        trainer("trainer.sync_batch_norm=true")


def test_the_first_process_speaks_for_all(monkeypatch, capsys):
    from spikedriven.cli.main import main

    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert main(["train", "digits", "trainer.devices=0"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines
