"""A run is reproducible, resumable to the last bit, and never destroys what it has."""

import csv
import errno
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from spikedriven import create_model
from spikedriven.data import DataInfo, open_data, sources
from spikedriven.errors import CheckpointError, ConfigError, DataError
from spikedriven.models.sdt import SpikeDrivenTransformer, Stem
from spikedriven.records import read_records
from spikedriven.train import checkpoint, progress
from spikedriven.train import fit as fit_module
from spikedriven.train import run as run_module
from spikedriven.train.checkpoint import KeepWeights, WholeFileIO
from spikedriven.train.evaluate import Evaluation, evaluate, open_run_data
from spikedriven.train.fit import fit, resume
from spikedriven.train.log import Table
from spikedriven.train.module import Training
from spikedriven.train.predict import predict
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run
from spikedriven.train.watch import DivergedError

# The digits at a size that trains an epoch in a second.
TINY = [
    "model.width=16",
    "model.num_heads=2",
    "model.depth=1",
    "model.num_steps=2",
    "data.image_size=8",
    "data.validation_fraction=0.5",
    "data.batch_size=128",
    "schedule.epochs=4",
]

STILL = ["optimizer.lr=1e-30", "schedule.min_lr=0", "schedule.warmup_epochs=0", "schedule.epochs=1"]
"""Steps that move a weight by 1e-30 at most."""


def tiny(*settings: str):
    return load_recipe("digits", [*TINY, *settings])


@pytest.fixture(autouse=True, scope="module")
def _log_every_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "LOG_EVERY", 1)
        yield


def stopping(at_epoch: int, at_batch: int, stop):
    """Return a training step that calls `stop` at one place, and otherwise the original."""
    original = Training.training_step

    def step(self, batch, batch_index):
        if (self.current_epoch, batch_index) == (at_epoch, at_batch):
            stop(self)
        return original(self, batch, batch_index)

    return step


def interrupt(*_arguments, **_keywords):
    raise KeyboardInterrupt


def fit_and_stop(recipe, folder: Path, at_epoch: int, at_batch: int = 3, stop=interrupt) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "training_step", stopping(at_epoch, at_batch, stop))
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, run_dir=folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One uninterrupted run of four epochs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit(tiny(), run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The same, stopped in the middle of its third epoch."""
    folder = tmp_path_factory.mktemp("runs") / "cut"
    fit_and_stop(tiny(), folder, at_epoch=2)
    return folder


@pytest.fixture
def cut(interrupted, tmp_path) -> Path:
    """A copy of the stopped run, to do as one likes with."""
    return Path(shutil.copytree(interrupted, tmp_path / "cut"))


def table(folder: Path) -> str:
    return (folder / "metrics.csv").read_text()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["loss"]]


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"{which}.safetensors")


def assert_same_run(a: Path, b: Path) -> None:
    """Every step's loss, accuracy and rate, in the same rows, and every weight: no tolerance."""
    assert table(a) == table(b)
    assert (a / "checkpoints/best.safetensors").exists()
    for which in ("last", "best"):
        assert weights(a, which).keys() == weights(b, which).keys()
        for name, tensor in weights(a, which).items():
            assert torch.equal(weights(b, which)[name], tensor), name


def test_the_run_folder_holds_everything(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert {"test_accuracy", "num_parameters", "train_seconds", "model", "seed"} <= set(metrics)
    assert metrics["test_count"] == 360
    assert sum(map(sum, metrics["confusion"])) == 360
    records = {record.metric: record for record in read_records(finished / "records.jsonl")}
    assert records["test_accuracy"].value == metrics["test_accuracy"]
    assert records["test_accuracy"].count == 360
    assert (finished / "checkpoints/best.safetensors").exists()
    assert any((finished / "tensorboard").iterdir())
    assert load_recipe(finished / "recipe.yaml") == tiny()
    log = (finished / "train.log").read_text().splitlines()
    assert [f"epoch {n}/4" in line for n, line in enumerate(log, start=1)] == [True] * 4


def test_every_step_is_logged_once_with_its_rate(finished):
    assert [int(row["step"]) for row in rows(finished)] == list(range(4 * 6))  # 719 by 128
    # Warm-up from 1e-4, then timm's cosine from 2e-3 to 1e-5: epochs 1 to 3 of 4.
    expected = [1e-4] + [1e-5 + (2e-3 - 1e-5) * share for share in (0.853553, 0.5, 0.146447)]
    found = [float(row["lr"]) for row in rows(finished)[::6]]
    assert found == pytest.approx(expected, rel=1e-5)


def test_nothing_reaches_the_screen(tmp_path):
    """In a process of its own: pytest would catch warnings and logging before the screen does."""
    code = (
        "from pathlib import Path\n"
        "from spikedriven.train.fit import fit\n"
        "from spikedriven.train.recipe import load_recipe\n"
        f"fit(load_recipe('digits', {[*TINY, 'schedule.epochs=2']}), run_dir=Path('run'))"
    )
    single = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_bar_fits_a_terminal_of_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    fit(tiny("schedule.epochs=2"), run_dir=tmp_path / "run", show_progress=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out).replace("\r", "\n")
    line = r"Epoch 2/2 .* 6/6 \d:\d\d:\d\d loss: \d\.\d+ acc: \d\.\d+ val: \d\.\d+ firing: \d\.\d+"
    assert re.search(line, shown), shown[-500:]


def test_evaluation_repeats_what_the_run_reported(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    result = evaluate(finished)
    assert result.accuracy == metrics["test_accuracy"]
    assert result.firing_rates == metrics["firing_rates"]
    assert evaluate(finished, split="validation", weights="best").count == 719
    labels = open_data(tiny().data).test.labels
    assert [sum(row) for row in result.confusion] == np.bincount(labels).tolist()


def test_evaluating_and_predicting_need_no_trainer(finished, tmp_path):
    """In a process of its own: here everything is imported already."""
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    code = (
        "import sys\n"
        "from spikedriven.cli.main import main\n"
        "main(['eval', sys.argv[1]])\n"
        "main(['predict', *sys.argv[1:]])\n"
        "print('lightning' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(finished), str(tmp_path / "image.png")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "accuracy" in done.stdout
    assert "image.png" in done.stdout
    assert done.stdout.endswith("False\n")


def test_the_worst_mistakes_come_first_and_hits_are_none():
    result = Evaluation(
        accuracy=0.5, loss=1.0, count=20, firing_rates={}, classes=("a", "b", "c"),
        confusion=[[9, 1, 3], [0, 1, 2], [4, 0, 0]],
    )  # fmt: skip
    assert result.worst() == [("c", "a", 4), ("a", "c", 3), ("b", "c", 2)]
    assert result.worst(9)[3:] == [("a", "b", 1)]


def test_of_equally_good_epochs_the_first_is_the_best(tmp_path, monkeypatch):
    saved = []
    trainer = SimpleNamespace(loggers=[], save_checkpoint=lambda _file: None, current_epoch=0)
    keep = KeepWeights(Run(tmp_path), Table(tmp_path / "metrics.csv"))
    training = Training(create_model("sdt_tiny", width=8, num_heads=1), tiny())
    monkeypatch.setattr(
        keep,
        "_keep_weights",
        lambda trainer, _module, which: saved.append((which, trainer.current_epoch)),
    )
    for epoch, accuracy in enumerate((0.5, 0.5, 0.7, 0.6, 0.7)):
        trainer.callback_metrics = {"validation_accuracy": torch.tensor(accuracy)}
        trainer.current_epoch = epoch
        keep.on_train_epoch_end(trainer, training)
    assert [epoch for which, epoch in saved if which == "best"] == [0, 2]


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):
    fit(tiny(), run_dir=tmp_path / "again")
    assert_same_run(finished, tmp_path / "again")
    fit(tiny("seed=1", "schedule.epochs=2"), run_dir=tmp_path / "other")
    assert rows(finished)[0]["loss"] != rows(tmp_path / "other")[0]["loss"]


def test_a_run_interrupted_in_the_third_epoch_resumes_to_the_last_bit(finished, cut):
    assert not (cut / "metrics.json").exists()
    resume(cut)
    assert_same_run(finished, cut)
    with pytest.raises(ConfigError, match="has finished"):
        resume(cut)


def test_a_run_interrupted_in_every_way_resumes_to_the_last_bit(tmp_path):
    """In the first epoch, by SIGTERM in the second, after the last: with mixup, Lamb and TET."""
    recipe = tiny(
        "schedule.epochs=2",
        "optimizer.name=lamb",
        "loss.mixup=0.5",
        "loss.mixup_epochs=2",
        "loss.tet_weight=0.001",
        "trainer.gradient_clip=1.0",
        "data.validation_fraction=0.6",
    )
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    fit(recipe, run_dir=whole)
    fit_and_stop(recipe, folder, at_epoch=0)
    with pytest.MonkeyPatch.context() as patch:
        terminate = stopping(1, 2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(Training, "training_step", terminate)
        with pytest.raises(KeyboardInterrupt):
            resume(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "evaluate_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            resume(folder)
    resume(folder)
    assert_same_run(whole, folder)


@pytest.mark.parametrize("at_batch", [1, 2, 3, 5])
def test_a_run_with_checkpoints_inside_an_epoch_resumes_there_to_the_last_bit(
    finished, tmp_path, at_batch
):
    every_two = tiny("trainer.checkpoint_every=2")
    fit_and_stop(every_two, tmp_path / "cut", at_epoch=1, at_batch=at_batch)
    state = WholeFileIO().load_checkpoint(tmp_path / "cut/checkpoints/last.ckpt")
    assert state["global_step"] == 6 + at_batch // 2 * 2
    steps = []
    original = Training.training_step

    def watched(self, batch, batch_index):
        steps.append((self.current_epoch, batch_index))
        return original(self, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "training_step", watched)
        resume(tmp_path / "cut")
    assert steps[0] == (1, at_batch // 2 * 2)
    assert len(steps) == 4 * 6 - state["global_step"]
    assert_same_run(finished, tmp_path / "cut")


def test_every_option_resumes_inside_an_epoch_to_the_last_bit(tmp_path):
    """An average, accumulated gradients, mixing and recomputation, stopped between two batches."""
    recipe = tiny(
        "optimizer.ema=0.9",
        "trainer.accumulate=2",
        "trainer.recompute=true",
        "trainer.checkpoint_every=1",
        "loss.mixup=0.2",
        "loss.cutmix=1",
        "loss.mix_probability=0.7",
        "data.augment.crop_scale=0.5",
        "schedule.epochs=2",
    )
    fit(recipe, run_dir=tmp_path / "whole")
    fit_and_stop(recipe, tmp_path / "cut", at_epoch=1, at_batch=3)
    state = WholeFileIO().load_checkpoint(tmp_path / "cut/checkpoints/last.ckpt")
    assert state["global_step"] == 3 + 1
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_single_step_epochs_show_one_frame_and_give_no_best_weights(tmp_path):
    """Seen by the stem: one step in the first two epochs, both in the last, as in every test."""
    seen, original = [], Stem.forward
    best = tmp_path / "run/checkpoints/best.safetensors"

    def watched(self, x, num_steps, reader):
        seen.append((self.training, num_steps, best.exists()))
        return original(self, x, num_steps, reader)

    recipe = tiny("schedule.epochs=3", "schedule.single_step_epochs=2", "schedule.warmup_epochs=0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stem, "forward", watched)
        fit(recipe, run_dir=tmp_path / "run")
    training = [steps for is_training, steps, _ in seen if is_training]
    assert training == [1] * 12 + [2] * 6
    assert not any(chosen for is_training, _, chosen in seen if is_training)
    assert sum(steps == 1 for is_training, steps, _ in seen if not is_training) == 2 * 6
    assert best.exists()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_single_step_epochs_resume_to_the_last_bit(tmp_path, precision):
    settings = (
        "schedule.epochs=3", "schedule.single_step_epochs=2", "trainer.checkpoint_every=1",
        f"trainer.precision={precision}",
    )  # fmt: skip
    fit(tiny(*settings), run_dir=tmp_path / "whole")
    fit_and_stop(tiny(*settings), tmp_path / "cut", at_epoch=1, at_batch=3)
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_the_time_left_counts_time_steps_not_epochs(tmp_path, monkeypatch):
    """A clock that advances a second with each step shown, so every line is known beforehand."""
    seconds, original = [0.0], Stem.forward

    def watched(self, x, num_steps, reader):
        if self.training:
            seconds[0] += num_steps
        return original(self, x, num_steps, reader)

    monkeypatch.setattr(Stem, "forward", watched)
    monkeypatch.setattr(progress, "monotonic", lambda: seconds[0])
    lines = []
    recipe = tiny("schedule.epochs=4", "schedule.single_step_epochs=2")
    fit(recipe, run_dir=tmp_path / "run", say=lines.append)
    # Six batches of one step in the first two epochs, of two in the others.
    left = [int(re.search(r"(\d+) s left", line)[1]) for line in lines]
    assert left == [6 * (1 + 2 + 2), 6 * (2 + 2), 6 * 2, 0]
    fit_and_stop(recipe, tmp_path / "cut", at_epoch=2)
    lines.clear()
    resume(tmp_path / "cut", say=lines.append)
    assert [re.search(r"(\S+) s left", line)[1] for line in lines] == [str(6 * 2), "0"]


def test_the_line_of_an_epoch_says_the_means_over_its_images(tmp_path):
    """Not those of its last batch, which may be a single image: here 78 of 718."""
    lines = []
    fit(tiny("schedule.epochs=2"), run_dir=tmp_path / "run", say=lines.append)
    for epoch, line in enumerate(lines):
        found = [row for row in rows(tmp_path / "run") if int(row["epoch"]) == epoch]
        images = [128, 128, 128, 128, 128, 78]
        for name in ("loss", "accuracy"):
            mean = np.average([float(row[name]) for row in found], weights=images)
            assert f"  {name} {mean:.4f}  " in line


def test_a_long_first_epoch_says_meanwhile_how_long_all_will_take(tmp_path, monkeypatch):
    now = itertools.count(step=10)
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(now)))
    lines = []
    fit(tiny("schedule.epochs=3"), run_dir=tmp_path / "run", say=lines.append)
    assert re.fullmatch(r"epoch 1/3  step [2-5]/6  \d+ s left", lines[0])
    assert len(lines) == 1 + 3


def test_the_average_is_that_of_the_steps_weights_and_is_what_is_tested(tmp_path):
    recipe = tiny("optimizer.ema=0.8", "schedule.epochs=1", "schedule.warmup_epochs=0")
    seen = []
    original = Training.optimizer_step

    def watched(self, *arguments, **keywords):
        if not seen:
            seen.append(self.model.head.weight.detach().clone())
        original(self, *arguments, **keywords)
        seen.append(self.model.head.weight.detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "optimizer_step", watched)
        fit(recipe, run_dir=tmp_path / "run")
    average = seen[0]
    for weight in seen[1:]:
        average = 0.8 * average + 0.2 * weight
    assert len(seen) == 1 + 6
    # Six roundings of single precision.
    assert torch.allclose(weights(tmp_path / "run")["head.weight"], average, atol=1e-6)
    assert not torch.allclose(seen[-1], average, atol=1e-4)


def test_the_optimiser_steps_once_for_accumulated_batches(tmp_path):
    steps = []
    original = Training.optimizer_step

    def watched(self, epoch, batch_index, optimizer, closure):
        original(self, epoch, batch_index, optimizer, closure)
        steps.append(batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "optimizer_step", watched)
        fit(tiny("trainer.accumulate=4", "schedule.epochs=2"), run_dir=tmp_path / "run")
    assert steps == [3, 5, 3, 5]  # six batches an epoch: the last two step together


def test_a_step_adds_the_gradients_of_its_batches_each_over_the_number_asked_for(tmp_path):
    """So does the last, whose two batches are fewer than the four."""
    single, stepped = [], []
    original = Training.training_step

    def watched(self, batch, batch_index):
        loss = original(self, batch, batch_index)
        single.append(torch.autograd.grad(loss, self.model.head.bias, retain_graph=True)[0])
        return loss

    def look(self, _optimizer):
        stepped.append(self.model.head.bias.grad.clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "training_step", watched)
        patch.setattr(Training, "on_before_optimizer_step", look)
        fit(tiny("trainer.accumulate=4", *STILL), run_dir=tmp_path / "run")
    for group, found in zip((single[:4], single[4:]), stepped, strict=True):
        assert torch.allclose(found, sum(group) / 4, atol=1e-7)  # roundings of single precision
        assert found.abs().max() > 1e-3


def test_the_averaged_model_is_the_one_that_is_validated(tmp_path):
    used, validating = [], []
    forward, validation_step = SpikeDrivenTransformer.forward, Training.validation_step

    def seen(self, x):
        used.extend([self] * bool(validating))
        return forward(self, x)

    def watched(self, batch, batch_index):
        validating.append(self)
        validation_step(self, batch, batch_index)
        assert used == [self.kept]
        assert self.kept is not self.model
        used.clear()
        validating.clear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpikeDrivenTransformer, "forward", seen)
        patch.setattr(Training, "validation_step", watched)
        fit(tiny("optimizer.ema=0.9", *STILL), run_dir=tmp_path / "run")


def test_nothing_is_logged_twice_or_lost_at_any_distance_of_log_and_checkpoint(
    tmp_path, monkeypatch
):
    for log_every, checkpoint_every in ((2, 3), (3, 2), (2, 2)):
        monkeypatch.setattr(fit_module, "LOG_EVERY", log_every)
        recipe = tiny(f"trainer.checkpoint_every={checkpoint_every}", "schedule.epochs=2")
        folder = tmp_path / f"{log_every}{checkpoint_every}"
        fit(recipe, run_dir=folder / "whole")
        fit_and_stop(recipe, folder / "cut", at_epoch=0, at_batch=4)
        fit_module.resume(folder / "cut")
        assert_same_run(folder / "whole", folder / "cut")


def test_a_run_without_validation_resumes_too_and_has_no_best(tmp_path):
    recipe = tiny("schedule.epochs=2", "data.validation_fraction=0", "data.batch_size=512")
    fit(recipe, run_dir=tmp_path / "whole")
    fit_and_stop(recipe, tmp_path / "cut", at_epoch=1, at_batch=1)
    resume(tmp_path / "cut")
    assert table(tmp_path / "whole") == table(tmp_path / "cut")
    assert not (tmp_path / "cut/checkpoints/best.safetensors").exists()
    with pytest.raises(ConfigError, match="no best weights"):
        evaluate(tmp_path / "cut", weights="best")


def test_a_killed_run_keeps_the_log_of_its_whole_epochs(finished, cut):
    """A killed process flushes nothing, and may leave half a row."""
    whole = table(cut).splitlines()
    epochs = [line for line in whole[1:] if int(line.split(",")[1]) < 2]
    assert len(epochs) == 2 * (6 + 1)
    for torn in ("0.5,2,0.0", "0.5,2,0.1,2.3,0.001,1"):
        (cut / "metrics.csv").write_text("\n".join([whole[0], *epochs, torn]))
        again = Path(shutil.copytree(cut, cut.with_name(f"again{len(torn)}")))
        resume(again)
        assert_same_run(finished, again)


def test_what_a_run_has_lost_of_its_log_is_said(cut):
    """Six of the fourteen rows before the state; its own are logged anew."""
    whole = table(cut).splitlines()
    (cut / "metrics.csv").write_text("\n".join(whole[:7]) + "\n")
    lines = []
    resume(cut, say=lines.append)
    assert f"{cut}/metrics.csv holds 6 of the 14 rows" in lines[0]
    assert len(lines) == 1 + 2


def test_a_run_that_has_no_training_state_says_so_and_begins_anew(finished, cut):
    shutil.rmtree(cut / "checkpoints")
    lines = []
    resume(cut, say=lines.append)
    assert lines[0] == f"{cut} holds no training state; it begins anew"
    assert len(lines) == 1 + 4
    assert_same_run(finished, cut)


def test_the_log_is_written_out_before_the_state_that_follows_it(tmp_path, monkeypatch):
    seen = []
    write = WholeFileIO.save_checkpoint

    def look(self, checkpoint, path, storage_options=None):
        seen.append(table(tmp_path / "run").count("\n"))
        write(self, checkpoint, path, storage_options)

    monkeypatch.setattr(WholeFileIO, "save_checkpoint", look)
    fit(tiny("schedule.epochs=2"), run_dir=tmp_path / "run")
    assert seen == [1 + 7, 1 + 14]


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_whole(finished, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    real = os.fsync

    def fills_up(handle):
        if (folder / "checkpoints/last.ckpt").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(CheckpointError, match="No space left"):
            fit(tiny(), run_dir=folder)
    assert WholeFileIO().load_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 6
    resume(folder)
    assert_same_run(finished, folder)


def test_a_disk_that_is_full_for_the_log_is_said_in_one_sentence(cut, monkeypatch):
    def full(_logger):
        raise OSError(errno.ENOSPC, "No space left on device")

    state = (cut / "checkpoints/last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.loggers.TensorBoardLogger.save", full)
        with pytest.raises(CheckpointError, match=r"No space left.*--resume"):
            resume(cut)
    assert (cut / "checkpoints/last.ckpt").read_bytes() == state


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(DivergedError, match=r"epoch \d, step \d.*lower optimizer\.lr") as refusal:
        fit(tiny("optimizer.lr=1e30", "schedule.warmup_epochs=0"), run_dir=tmp_path / "wild")
    assert not list((tmp_path / "wild/checkpoints").iterdir())
    assert "last checkpoint" not in str(refusal.value)  # there is none


def test_a_weight_that_is_no_number_never_reaches_a_checkpoint(cut, monkeypatch):
    def poison(training):
        torch.nn.init.constant_(training.model.blocks[0].attention.query.conv.weight, torch.nan)

    before = weights(cut), (cut / "checkpoints/last.ckpt").read_bytes()
    monkeypatch.setattr(Training, "training_step", stopping(2, 5, poison))
    with pytest.raises(DivergedError, match="epoch 3"):
        resume(cut)
    assert (cut / "checkpoints/last.ckpt").read_bytes() == before[1]
    assert all(torch.equal(weights(cut)[name], tensor) for name, tensor in before[0].items())


class _RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran code",))


def with_mark(content: bytes) -> bytes:
    """What an attacker would write: a state file with a right checksum."""
    return checkpoint._MARK + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_hostile_training_state_is_refused_and_not_run(cut):
    (cut / "checkpoints/before.ckpt").unlink()
    hostile = [pickle.dumps(_RunsCode(), protocol=protocol) for protocol in (2, 5)]
    for content in (*hostile, pickled({"state_dict": _RunsCode()})):
        (cut / "checkpoints/last.ckpt").write_bytes(with_mark(content))
        with pytest.raises(CheckpointError, match="was not run"):
            resume(cut)


def test_however_a_training_state_is_made_up_one_sentence_refuses_it(tmp_path):
    whole, file = pickled({"state_dict": {"weight": torch.ones(2, 2)}}), tmp_path / "last.ckpt"
    draw = random.Random(0)
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            content[draw.randrange(len(whole))] = draw.randrange(256)
        file.write_bytes(with_mark(content))
        with pytest.raises(CheckpointError) as refusal:
            WholeFileIO().load_checkpoint(file)
        assert str(refusal.value).startswith(str(file))


def test_a_damaged_training_state_is_refused_where_none_is_left(cut):
    (cut / "checkpoints/before.ckpt").unlink()
    file = cut / "checkpoints/last.ckpt"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.ckpt") as refusal:
            resume(cut)
        assert "\n" not in str(refusal.value)
    for foreign in ({"weights": 1}, torch.zeros(2)):
        file.write_bytes(with_mark(pickled(foreign)))
        with pytest.raises(CheckpointError, match="no training state"):
            resume(cut)


def test_a_training_state_of_wrong_content_is_refused_whatever_is_wrong(cut):
    (cut / "checkpoints/before.ckpt").unlink()
    file = cut / "checkpoints/last.ckpt"
    whole = file.read_bytes()

    def refusal_of(*keys, value, by) -> str:
        file.write_bytes(whole)
        state = WholeFileIO().load_checkpoint(file)
        inner = state
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        WholeFileIO().save_checkpoint(state, file)
        (cut / "checkpoints/before.ckpt").unlink()
        with pytest.raises(CheckpointError) as refusal:
            by()
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    def read():
        return WholeFileIO().load_checkpoint(file)

    def go_on():
        return resume(cut)

    optimiser = ("optimizer_states", 0)
    for part, inner, value in [
        ("callbacks", (), {}),
        ("callbacks", (), 5),
        ("callbacks", ("KeepWeights", "rows"), "a"),
        ("callbacks", ("KeepWeights", "row"), 5),
        ("callbacks", ("KeepWeights", "best"), None),
        ("recipe", (), 5),
        ("state_dict", (), 5),
        ("row", (), 5),
        ("row", ("loss",), "a"),
        ("optimizer_states", (), []),
        ("global_step", (), "a"),
        ("Data", (), 5),
    ]:
        assert f"its {part} cannot be used" in refusal_of(part, *inner, value=value, by=read)
    for keys, value in [
        (("loops",), {}),
        (("loops", "fit_loop", "epoch_progress"), 5),
        ((*optimiser, "param_groups"), []),
        ((*optimiser, "state", 0), {"exp_avg": 3}),
    ]:
        assert "last.ckpt is no training state" in refusal_of(*keys, value=value, by=go_on)
    assert "another recipe" in refusal_of("recipe", value="[", by=go_on)
    for keys, value in [
        ((*optimiser, "state"), {}),
        ((*optimiser, "state", 0, "exp_avg"), torch.zeros(2)),
    ]:
        assert "the optimiser's moments" in refusal_of(*keys, value=value, by=go_on)


@pytest.mark.parametrize("damage", ["lost", "cut", "altered"])
def test_a_damaged_state_gives_way_to_the_one_before_and_one_line_says_so(finished, cut, damage):
    file = cut / "checkpoints/last.ckpt"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage != "lost":
        content[-100] ^= 1
        file.write_bytes(content[:-1] if damage == "cut" else content)
    lines = []
    resume(cut, say=lines.append)
    assert [line for line in lines if "last.ckpt" in line] == lines[:1]
    assert lines[0].endswith("the state before it, after step 6, is whole and taken")
    assert_same_run(finished, cut)


def test_a_kill_between_the_two_renamings_loses_one_state_only(finished, cut):
    (cut / "checkpoints/last.ckpt").rename(cut / "checkpoints/before.ckpt")
    (cut / "checkpoints/next.ckpt").write_bytes(b"whole or not, it is written anew")
    resume(cut)
    assert_same_run(finished, cut)


def test_a_run_continues_only_with_the_recipe_that_it_began_with(cut):
    recipe = (cut / "recipe.yaml").read_text()
    for old, new in (("lr: 0.002", "lr: 0.001"), ("width: 16", "width: 32")):
        assert old in recipe
        (cut / "recipe.yaml").write_text(recipe.replace(old, new))
        with pytest.raises(CheckpointError, match="another recipe"):
            resume(cut)


def test_a_run_continues_where_a_newer_version_knows_more_keys(finished, cut):
    file = cut / "checkpoints/last.ckpt"
    state = WholeFileIO().load_checkpoint(file)
    for key in ("  weights: null\n", "  energy_budget: null\n"):
        assert key in state["recipe"]
        state["recipe"] = state["recipe"].replace(key, "")
    WholeFileIO().save_checkpoint(state, file)
    (cut / "recipe.yaml").write_text(state["recipe"])
    resume(cut)
    assert_same_run(finished, cut)


@pytest.mark.parametrize("source", ["run", "file"])
def test_training_begins_from_given_weights_at_another_number_of_steps(finished, tmp_path, source):
    begin = finished if source == "run" else finished / "checkpoints/last.safetensors"
    folder = tmp_path / "run"
    fit(tiny(f"model.weights={begin}", "model.num_steps=3", *STILL), run_dir=folder)
    model = Run(folder).model()
    assert model.config.num_steps == 3
    for name, parameter in model.named_parameters():
        assert (parameter - weights(finished)[name]).abs().max() < 1e-28, name


def test_a_run_that_began_from_weights_resumes_without_them(finished, tmp_path):
    begin = tmp_path / "begin.safetensors"
    shutil.copy(finished / "checkpoints/last.safetensors", begin)
    recipe = tiny(f"model.weights={begin}", "schedule.epochs=2")
    fit(recipe, run_dir=tmp_path / "whole")
    fit_and_stop(recipe, tmp_path / "cut", at_epoch=1)
    begin.unlink()
    resume(tmp_path / "cut")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("begin", "setting", "says"),
    [
        ("nowhere.safetensors", "model.depth=1", "cannot be read"),
        (None, "model.width=32", "this model has"),
        (None, "model.depth=2", "lacks"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_a_folder_is_made(
    finished, tmp_path, begin, setting, says
):
    with pytest.raises(CheckpointError, match=says):
        fit(tiny(f"model.weights={begin or finished}", setting), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


NESTED = "[" * 100_000


@pytest.mark.parametrize("damaged", ['{"test_accuracy":', "5", "null", "[]", "{}", NESTED])
def test_damaged_metrics_are_refused_and_the_run_counts_as_finished(finished, tmp_path, damaged):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "metrics.json").write_text(damaged)
    with pytest.raises(DataError, match=r"metrics\.json is damaged .* remove it .* --resume"):
        predict(folder, [])
    with pytest.raises(ConfigError, match="has finished"):
        resume(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ["a"]}, "it has 1 classes and the model 10"),
        ({"in_channels": 3}, "it has 3 channels and the model 1"),
        ({"std": []}, "means and deviations"),
        ({"std": [0.0]}, "its deviations must be above 0 and all its numbers finite"),
        ({"mean": [float("nan")]}, "all its numbers finite"),
        ({"std": [float("inf")]}, "all its numbers finite"),
        ({"mean": 3}, '"mean"'),
        ({"classes": None}, "classes"),
        ({"image_size": "large"}, '"image_size"'),
        ({"colour": 1}, "'colour' is not accepted"),
        (None, "no mapping"),
    ],
)
def test_metrics_of_something_else_are_refused_by_name(finished, tmp_path, changes, reason):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    metrics = json.loads((finished / "metrics.json").read_text())
    data = metrics["data"] | changes if changes else 3
    (folder / "metrics.json").write_text(json.dumps(metrics | {"data": data}))
    with pytest.raises(DataError, match=re.escape(reason)) as refusal:
        predict(folder, [])
    assert "\n" not in str(refusal.value)


def test_before_its_first_epoch_has_ended_a_run_is_to_be_continued(tmp_path):
    fit_and_stop(tiny("trainer.checkpoint_every=1"), tmp_path / "run", at_epoch=0)
    for use in (evaluate, lambda folder: predict(folder, [])):
        with pytest.raises(ConfigError, match=r"no epoch has ended.*train --resume"):
            use(tmp_path / "run")


@pytest.mark.parametrize(
    ("old", "new"),
    [("width: 16", "width: 32"), ("depth: 1", "depth: null"), ("sdt_tiny", "sdt_2_256_gesture")],
)
def test_weights_that_the_recipe_does_not_describe_are_refused(finished, tmp_path, old, new):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = (folder / "recipe.yaml").read_text()
    assert old in recipe
    (folder / "recipe.yaml").write_text(recipe.replace(old, new))
    with pytest.raises(CheckpointError, match=r"recipe\.yaml of its run says"):
        evaluate(folder)


def test_the_best_of_an_empty_validation_split_is_refused_before_training(tmp_path):
    """A tenth of one image of each class holds out none."""
    for split in ("train", "val"):
        for name in ("one", "two"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 90).save(tmp_path / "data" / split / name / "image.png")
    words = ["data.name=image_folder", "data.validation_fraction=0.1", "evaluate=best"]
    with pytest.raises(ConfigError, match="the validation split is empty"):
        fit(tiny(*words), run_dir=tmp_path / "run", data_root=tmp_path / "data")
    assert not (tmp_path / "run").exists()


IN_FILES = ["data.name=image_folder", "schedule.epochs=2", "data.batch_size=2"]


def files(root: Path, classes: str = "ab", count: int = 4, first: int = 0) -> Path:
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for n in range(first, first + count):
                Image.new("RGB", (12, 12), (20 * n,) * 3).save(root / split / name / f"{n}.png")
    return root


@pytest.fixture(scope="module")
def of_files(tmp_path_factory) -> dict[str, Path]:
    """A finished and a stopped run on two classes of files."""
    root = tmp_path_factory.mktemp("files")
    recipe, data = tiny(*IN_FILES), files(root / "data")
    fit(recipe, run_dir=root / "whole", data_root=data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "training_step", stopping(1, 1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, run_dir=root / "cut", data_root=data)
    return {"whole": root / "whole", "cut": root / "cut"}


@pytest.mark.parametrize(
    ("which", "classes", "sentence"),
    [
        (
            "whole",
            "abc",
            r"other has 3 classes and .*whole was trained on 2; they must be the same",
        ),
        ("cut", "abc", r"other has 3 classes and .*cut was trained on 2; they must be the same"),
        ("whole", "ac", r"class 1 of other is 'c' and .*whole was trained on 'b'; .* --data$"),
    ],
)
def test_a_run_is_evaluated_on_its_own_classes_only(of_files, tmp_path, which, classes, sentence):
    other = files(tmp_path / "other", classes)
    with pytest.raises(DataError, match=sentence):
        evaluate(of_files[which], data_root=other)


def test_a_run_is_evaluated_on_other_images_of_its_classes_at_another_size(of_files, tmp_path):
    other = files(tmp_path / "other", count=3, first=5)
    for which in ("whole", "cut"):  # the stopped one knows no names: how many must do
        result = evaluate(of_files[which], data_root=other, settings=["data.image_size=16"])
        assert result.count == 6
    assert evaluate(of_files["cut"], data_root=files(tmp_path / "named", "xy")).count == 8


def test_a_run_of_other_channels_than_the_data_is_refused(finished):
    config = replace(Run.open(finished).model().config, in_channels=3)
    with pytest.raises(DataError, match=r"digits has 1 channels and .* was trained on 3"):
        open_run_data(Run.open(finished), config, None)


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        ({"classes": "abc"}, "classes;"),
        ({"classes": "xy"}, "classes;"),
        ({"count": 6}, r"number of training images \(6 and 4\);"),
        ({"first": 1}, "names of training images;"),
    ],
)
def test_a_run_continues_only_on_the_images_that_it_began_with(of_files, tmp_path, other, differ):
    cut = Path(shutil.copytree(of_files["cut"], tmp_path / "cut"))
    with pytest.raises(DataError, match=f"^other and the data that .* differ in their {differ}"):
        resume(cut, data_root=files(tmp_path / "other", **other))
    resume(cut, data_root=files(tmp_path / "moved"))
    assert_same_run(of_files["whole"], cut)


def test_a_state_of_an_older_version_knows_no_data_and_continues(of_files, tmp_path):
    cut = Path(shutil.copytree(of_files["cut"], tmp_path / "cut"))
    file = cut / "checkpoints/last.ckpt"
    state = WholeFileIO().load_checkpoint(file)
    del state["Data"]
    WholeFileIO().save_checkpoint(state, file)
    resume(cut, data_root=files(tmp_path / "other", first=1))
    assert (cut / "metrics.json").exists()


def test_damaged_weights_are_refused(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    file = folder / "checkpoints/last.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="whole file"):
        evaluate(folder)
    with pytest.raises(ConfigError, match="last or best"):
        Run.open(folder).model("first")


TWO_PROCESSES = """
import os, sys, time
from pathlib import Path
from spikedriven.train.run import Run
with Run(Path(sys.argv[1])).held(print):
    if worker := os.fork():
        print(worker, flush=True)
    time.sleep(60)
"""


def test_a_run_is_trained_by_one_process_and_free_again_once_that_was_killed(cut):
    """Free though a child of it lives on, as workers that prepare images do for a while."""
    before = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TWO_PROCESSES, cut], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(ConfigError, match="is being trained by another process"):
            resume(cut)
        assert {file: file.read_bytes() for file in before} == before
        holder.kill()
        holder.wait()
        with Run(cut).held(pytest.fail):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate()


def test_a_file_system_without_locks_is_said_and_does_not_stop_a_run(cut, monkeypatch):
    def none(_file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_module, "_lock", none)
    lines = []
    with Run(cut).held(lines.append):
        assert "No locks available" in lines[0]


@pytest.mark.parametrize("stage", ["mkdir", "fsync", "rename"])
def test_a_run_that_is_stopped_while_its_folder_is_made_leaves_none(tmp_path, monkeypatch, stage):
    with monkeypatch.context() as patch:
        patch.setattr(os if stage == "fsync" else Path, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            Run.create(tmp_path / "run", tiny())
    assert list(tmp_path.iterdir()) == []
    assert Run.create(tmp_path / "run", tiny()).recipe() == tiny()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_an_existing_folder_is_refused_before_the_data_are_opened(finished, tmp_path):
    for folder, sentence in ((finished, "--resume"), (tmp_path, "is no run")):
        with pytest.raises(ConfigError, match=sentence):
            fit(tiny("data.name=image_folder"), run_dir=folder, data_root=tmp_path / "nowhere")


def test_an_existing_folder_is_never_overwritten(finished):
    with pytest.raises(ConfigError, match="--resume"):
        fit(tiny(), run_dir=finished)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        fit(tiny(), run_dir=tmp_path / "file" / "run")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is no run"):
        resume(tmp_path)


@pytest.mark.parametrize("setting", ["model.num_classes=7", "model.in_channels=3"])
def test_a_model_that_contradicts_the_data_is_refused(setting, tmp_path):
    with pytest.raises(ConfigError, match=r"as digits has it"):
        fit(tiny(setting), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting", ["data.augment.rotation=5", "data.augment.rand_augment=rand-m9"]
)
def test_images_that_cannot_live_on_the_device_are_refused_before_a_folder_is_made(
    tmp_path, monkeypatch, setting
):
    rng = np.random.default_rng(0)
    part = (
        torch.from_numpy(rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)),
        np.arange(12) % 3,
    )
    info = DataInfo(
        name="made", classes=("a", "b", "c"), in_channels=3, image_size=32,
        mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip
    monkeypatch.setitem(sources._SOURCES, "cifar10", lambda *_: (info, part, None, part))
    made = []
    monkeypatch.setattr(Run, "create", lambda *_: made.append(True))
    with pytest.raises(ConfigError, match=r"data\.resident is set"):
        fit(load_recipe("cifar10", ["data.resident=true", setting]), run_dir=tmp_path / "run")
    assert not made


def test_a_batch_of_one_value_per_channel_is_refused_before_a_folder_is_made(tmp_path):
    one = ["data.image_size=4", "model.num_steps=1"]
    images = len(open_data(tiny(*one).data, None, seed=0).train)
    for batch in (1, images - 1):  # the second leaves one image for the last batch
        with pytest.raises(ConfigError, match="batch norm must see more than one value"):
            fit(tiny(*one, f"data.batch_size={batch}"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    fit(tiny(*one, f"data.batch_size={images - 2}", "schedule.epochs=2"), run_dir=tmp_path / "run")


def test_a_size_that_the_stem_cannot_halve_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be a multiple of 4"):
        fit(tiny("data.image_size=10"), run_dir=tmp_path / "run")


def test_an_unreadable_image_does_not_stop_the_others(finished, tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (8, 8), 100).save(good)
    bad.write_bytes(b"nothing")
    predictions = predict(finished, [bad, good], top_k=3)
    assert "bad.png is not a readable image" in predictions[0].error
    assert predictions[1].error is None
    assert len(predictions[1].classes) == 3
    assert list(predictions[1].probabilities) == sorted(predictions[1].probabilities)[::-1]
