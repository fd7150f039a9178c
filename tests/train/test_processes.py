"""Several processes: together they are one with a larger batch, and none counts twice."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from spikedriven import create_model
from spikedriven.core.lif import Norm
from spikedriven.core.norm import synced_batch_norm
from spikedriven.data import EpochSampler, PartSampler, Place, open_data
from spikedriven.errors import BackendError, ConfigError
from spikedriven.models.weights import load_model
from spikedriven.train import watch
from spikedriven.train.checkpoint import WholeFileIO
from spikedriven.train.evaluate import evaluate, evaluate_model
from spikedriven.train.fit import fit
from spikedriven.train.processes import check_processes, end_processes
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run
from spikedriven.train.shard import divide, own_part

TINY = [
    "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
    "data.image_size=8", "data.validation_fraction=0.5", "schedule.epochs=2",
    "trainer.precision=64-true", "trainer.accelerator=cpu",
]  # fmt: skip
SUMMATION = 1e-8
"""What the order of float64 sums may leave after twelve steps. A convolution's bias in front of a
batch norm has no gradient but rounding, which AdamW divides by itself: it alone comes near this."""
TWO = [*TINY, "data.batch_size=64", "trainer.devices=2", "trainer.sync_batch_norm=true"]
LONGEST = 300.0
"""Seconds that a run may take on a busy machine; one that hangs takes for ever."""


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
        check=False, timeout=LONGEST,
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


def assert_the_same_state(one: Path, two: Path) -> None:
    states = [WholeFileIO().load_checkpoint(run / "checkpoints/last.ckpt") for run in (one, two)]
    weights = [state["state_dict"] for state in states]
    moments = [state["optimizer_states"][0]["state"] for state in states]
    assert moments[0].keys() == moments[1].keys()
    for first, second in (weights, *((moments[0][n], moments[1][n]) for n in moments[0])):
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert type(second[name]) is torch.Tensor, name
            assert torch.allclose(tensor, second[name], rtol=0, atol=SUMMATION), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one_with_twice_the_batch(one, tmp_path, strategy):
    """719 images by 128: the last batch of 79 is divided into 40 and 39."""
    two = tmp_path / "two"
    words = [*TWO, f"trainer.strategy={strategy}", "--run", str(two)]
    done = train("digits", *words, MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    for word in ("Warning", "error"):  # of either process
        assert word not in done.stderr
    assert done.stdout.count("epoch 2/2") == done.stdout.count("Test accuracy") == 1
    assert_the_same_run(one, two)
    assert_the_same_state(one, two)
    alone = evaluate(two)  # this process knows nothing of the two
    assert alone.confusion == json.loads((two / "metrics.json").read_text())["confusion"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_take_every_option(tmp_path, strategy):
    options = [
        "optimizer.name=lamb", "optimizer.lr=0.01", "optimizer.ema=0.5", "trainer.recompute=true",
        "trainer.gradient_clip=0.01", "trainer.accumulate=2", "trainer.checkpoint_every=2",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    done = train("digits", *TINY, *options, "data.batch_size=128", "--run", str(one))
    assert done.returncode == 0, done.stderr
    words = [*TWO, *options, f"trainer.strategy={strategy}", "--run", str(two)]
    done = train("digits", *words, MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    assert_the_same_run(one, two)
    assert_the_same_state(one, two)


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_all_validate_the_model_that_is_kept_where_norms_are_not_synced(tmp_path, ema):
    """Each process has statistics of its own; those of the first are written and validated."""
    run = tmp_path / "run"
    words = [
        *TWO, "trainer.sync_batch_norm=false", "data.batch_size=8", "model.width=32",
        "schedule.epochs=3", "schedule.warmup_epochs=0", "optimizer.lr=0.02",  # until it fires
        f"optimizer.ema={ema}",
    ]  # fmt: skip
    done = train("digits", *words, "--run", str(run), MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    said = [row for row in rows if row["validation_loss"]][-1]
    recipe = Run.open(run).recipe()
    model = load_model(run / "checkpoints/last.safetensors").double()
    found = evaluate_model(model, open_data(recipe.data, None, seed=recipe.seed).validation)
    assert float(said["validation_accuracy"]) == pytest.approx(found.accuracy, rel=0, abs=1e-6)
    assert float(said["validation_loss"]) == pytest.approx(found.loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_that_are_killed_continue_to_the_same_bits(tmp_path, strategy):
    """Norms are not synced: each process has statistics of its own, the file the first's."""
    words = [
        *TWO, "trainer.sync_batch_norm=false", f"trainer.strategy={strategy}", "optimizer.ema=0.5",
        "trainer.checkpoint_every=1",
    ]  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = train("digits", *words, "--run", str(whole), MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    command = [sys.executable, "-m", "spikedriven", "train", "digits", *words, "--run", str(cut)]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    state, began = cut / "checkpoints/before.ckpt", time.monotonic()
    while not state.exists() and run.poll() is None:
        assert time.monotonic() - began < LONGEST
        time.sleep(0.01)
    time.sleep(random.Random(0).uniform(0, 0.1))
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    done = train("--resume", str(cut), MASTER_PORT=str(free_port()))
    assert done.returncode == 0, done.stderr
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    for which in ("last", "best"):
        a, b = (load_file(folder / f"checkpoints/{which}.safetensors") for folder in (whole, cut))
        assert a.keys() == b.keys()
        assert not [name for name, tensor in a.items() if not torch.equal(tensor, b[name])]


def test_every_process_keeps_its_part_of_every_weight():
    model = create_model("sdt_2_256_cifar", depth=1, width=24)
    whole = {name: weight.shape for name, weight in model.named_parameters()}
    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    try:
        divide(model, init_device_mesh("cpu", (4,)))
        for name, weight in model.named_parameters():
            rows, *rest = whole[name]
            part = -(-rows // 4)
            mine = min(part, max(0, rows - part))
            assert own_part(weight).shape == (mine, *rest), name
    finally:
        dist.destroy_process_group()


def test_what_cannot_be_divided_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lightning, "Trainer", None)  # no process may be started here
    with pytest.raises(ConfigError, match="fsdp and there is one process"):
        load_recipe("digits", ["trainer.strategy=fsdp"])
    with pytest.raises(ConfigError, match=r"set trainer\.precision=bf16-mixed"):
        load_recipe(
            "digits", ["trainer.strategy=fsdp", "trainer.devices=2", "trainer.precision=16-mixed"]
        )
    with pytest.raises(ConfigError, match=r"one of ddp, fsdp"):
        load_recipe("digits", ["trainer.strategy=zero"])
    plif = ["trainer.strategy=fsdp", "trainer.devices=2", "model.neuron=plif"]
    with pytest.raises(ConfigError, match=r"stem\.image\.lif\.w is a single number"):
        fit(load_recipe("digits", [*TINY, *plif]), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_weight_that_is_no_number_in_another_process_stops_this_one(monkeypatch):
    class Trainer:
        current_epoch = 2

    module = torch.nn.Linear(2, 2)
    watch.check_weights(Trainer, module)
    monkeypatch.setattr(
        watch, "sum_over_processes", lambda own: own + torch.tensor([0, 1], dtype=own.dtype)
    )
    with pytest.raises(
        watch.DivergedError, match="bias holds a value that is no number in epoch 3"
    ):
        watch.check_weights(Trainer, module)


def test_after_an_error_lightning_does_not_kill_the_process_that_must_speak(monkeypatch):
    """Its observer would, within five seconds of another process's end."""
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
    failed.wait()
    launcher = SimpleNamespace(procs=[failed])
    observer = _ChildProcessObserver(os.getpid(), launcher.procs)
    observer._run()
    assert killed == [os.getpid()]  # so it is needed
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    stop = watch.Watch()
    stop.on_exception(trainer, None, KeyboardInterrupt())
    observer._run()
    assert killed == [os.getpid()]
    assert stop.started == [failed]
    end_processes(stop.started)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_torchrun_starts_them_too(one, tmp_path, strategy):
    words = [*TWO, f"trainer.strategy={strategy}"]
    start = (
        "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
        "-m", "--", "spikedriven",  # else torchrun takes our --run for a part of its --run-path
    )  # fmt: skip
    done = train("digits", *words, "--run", str(tmp_path / "two"), start=start)
    assert done.returncode == 0, done.stderr
    assert_the_same_run(one, tmp_path / "two")


@pytest.mark.slow
def test_two_machines_are_one_with_twice_the_batch(one, tmp_path):
    """One process on each, as torchrun starts them on a cluster; here both are this machine."""
    port = free_port()
    nodes = ["trainer.devices=1", "trainer.nodes=2", "trainer.strategy=fsdp"]

    def run(node: int):
        start = (
            "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}",
            "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}",
            "-m", "--", "spikedriven",
        )  # fmt: skip
        return train("digits", *TWO, *nodes, "--run", str(tmp_path / "two"), start=start)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(run, range(2)):
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


@pytest.mark.parametrize(
    ("words", "rank", "ranks", "lines"),
    [
        (["train", "digits", "trainer.devices=0"], "0", "2", 1),
        (["train", "digits", "trainer.devices=0"], "1", "2", 0),
        (["train", "digits", "trainer.devices=0"], "1", "1", 1),  # alone, whatever its number
        (["train", "digits", "trainer.devices=0"], "a", "2", 1),
        (["eval", "/nowhere"], "1", "2", 1),  # no verb but train has several processes
    ],
)
def test_the_first_process_speaks_for_all(words, rank, ranks, lines, monkeypatch, capsys):
    from spikedriven.cli.main import main

    monkeypatch.setenv("WORLD_SIZE", ranks)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, rank)
        assert main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_a_number_of_a_process_that_is_none_is_refused_before_lightning_reads_it(name, tmp_path):
    words = [sys.executable, "-m", "spikedriven", "train", "digits", "--run", str(tmp_path / "run")]
    done = subprocess.run(
        words, env=os.environ | {name: "x"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name} is 'x' in the environment; it must be a whole")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ranks", [None, "1", "3"])
def test_a_rank_without_a_place_among_the_processes_is_refused(ranks, tmp_path):
    words = [sys.executable, "-m", "spikedriven", "train", "digits", "--run", str(tmp_path / "run")]
    env = os.environ | {"RANK": "3"} | ({"WORLD_SIZE": ranks} if ranks else {})
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: RANK is 3 in the environment and WORLD_SIZE is {ranks or 1}; a rank must be below "
        "the number of processes: unset RANK, or start the run with torchrun\n"
    )


def test_half_precision_is_refused_where_no_gpu_is_used(monkeypatch):
    """Lightning takes bfloat16 for it on a CPU."""
    half = ["trainer.precision=16-mixed"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_processes(load_recipe("digits", half).trainer)
    with pytest.raises(ConfigError, match=r"on a CPU.*: .* set trainer\.precision=bf16-mixed"):
        check_processes(load_recipe("digits", [*half, "trainer.accelerator=cpu"]).trainer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"set trainer\.precision=bf16-mixed"):
        check_processes(load_recipe("cifar10_fast").trainer)
    check_processes(load_recipe("cifar10_fast", ["trainer.precision=bf16-mixed"]).trainer)
