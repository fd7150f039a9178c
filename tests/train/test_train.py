"""A run is reproducible, resumable to the last bit, and never destroys what it has."""

import csv
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.records import read_records
from spikedriven.train import fit as fit_module
from spikedriven.train.evaluate import evaluate
from spikedriven.train.fit import DivergedError, fit, resume
from spikedriven.train.losses import tet_loss
from spikedriven.train.module import build_optimizer, mixed, set_rate
from spikedriven.train.predict import predict
from spikedriven.train.recipe import OptimizerConfig, ScheduleConfig, list_recipes, load_recipe

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


def tiny(*settings: str):
    return load_recipe("digits", [*TINY, *settings])


@pytest.fixture(autouse=True)
def _log_every_step(monkeypatch):
    monkeypatch.setattr(fit_module, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of four epochs."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "LOG_EVERY", 1)
        fit(tiny(), run_dir=folder)
    return folder


def losses(folder) -> list[tuple[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def weights(folder, which="last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"{which}.safetensors")


def assert_same_run(a, b) -> None:
    assert losses(a) == losses(b)
    for name, tensor in weights(a).items():
        assert torch.equal(weights(b)[name], tensor), name


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
    assert len(losses(finished)) == 4 * 6  # 722 images in batches of 128
    assert load_recipe(finished / "recipe.yaml") == tiny()


def test_evaluation_repeats_what_the_run_reported(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    result = evaluate(finished)
    assert result.accuracy == metrics["test_accuracy"]
    assert result.firing_rates == metrics["firing_rates"]
    assert evaluate(finished, split="validation", weights="best").count == 719


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):
    fit(tiny(), run_dir=tmp_path / "again")
    assert_same_run(finished, tmp_path / "again")
    fit(tiny("seed=1", "schedule.epochs=2"), run_dir=tmp_path / "other")
    assert losses(finished)[0] != losses(tmp_path / "other")[0]


def test_a_run_interrupted_in_the_third_epoch_resumes_to_the_last_bit(
    finished, tmp_path, monkeypatch
):
    original = fit_module.Training.training_step

    def interrupted(self, batch, batch_index):
        if self.current_epoch == 2 and batch_index == 3:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Training, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), run_dir=folder)
    assert not (folder / "metrics.json").exists()
    resume(folder)
    assert_same_run(finished, folder)
    with pytest.raises(ConfigError, match="has finished"):
        resume(folder)


def test_eight_images_are_learned_by_heart():
    torch.manual_seed(0)
    from spikedriven import create_model
    from spikedriven.data import open_data

    recipe = tiny("optimizer.lr=1e-2")
    data = open_data(recipe.data).test
    images = torch.stack([data[n][0] for n in range(8)])
    labels = torch.tensor([data[n][1] for n in range(8)])
    model = create_model("sdt_tiny", width=32, num_heads=2)
    optimizer = build_optimizer(model, recipe.optimizer)
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model(images).argmax(-1), labels)


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_whole(tmp_path, monkeypatch):
    folder = tmp_path / "full"
    real, calls = os.fsync, []

    def fills_up(handle):
        calls.append(handle)
        if len(calls) > 5:  # best, last and state of the first epoch, then some
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(CheckpointError, match="No space left"):
            fit(tiny(), run_dir=folder)
    assert weights(folder)
    resume(folder)
    assert len(losses(folder)) == 24


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(DivergedError, match=r"epoch \d, step \d"):
        fit(tiny("optimizer.lr=1e30"), run_dir=tmp_path / "wild")


class _RunsCode:
    def __reduce__(self):
        return (pytest.fail, ("the pickle ran code",))


def test_a_hostile_training_state_is_refused_and_not_run(finished, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text((finished / "recipe.yaml").read_text())
    (tmp_path / "checkpoints/last.ckpt").write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    with pytest.raises(CheckpointError, match="was not run"):
        resume(tmp_path)


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


def test_a_size_that_the_stem_cannot_halve_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be a multiple of 4"):
        fit(tiny("data.image_size=10"), run_dir=tmp_path / "run")


def test_an_unreadable_image_does_not_stop_the_others(finished, tmp_path):
    from PIL import Image

    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (8, 8), 100).save(good)
    bad.write_bytes(b"nothing")
    predictions = predict(finished, [bad, good], top_k=3)
    assert "bad.png is not a readable image" in predictions[0].error
    assert predictions[1].error is None
    assert len(predictions[1].classes) == 3
    assert list(predictions[1].probabilities) == sorted(predictions[1].probabilities)[::-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("schedule.epoch=3", r"did you mean schedule\.epochs\?"),
        ("lr=3", r"did you mean optimizer\.lr\?"),
        ("schedule.epochs=many", "must be int"),
        ("schedule.epochs=0", "at least 1"),
        ("schedule.warmup_epochs=16", "warm-up must end"),
        ("optimizer.lr=-1", "above 0"),
        ("optimizer.name=sgd", "adamw or lamb"),
        ("trainer.precision=8", "must be one of"),
        ("trainer.devices=0", "at least 1"),
        ("loss.label_smoothing=1", r"\[0, 1\)"),
        ("evaluate=test", "last or best"),
        ("nonsense", "key=value"),
    ],
)
def test_a_recipe_refuses_nonsense_and_names_the_cure(setting, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("digits", [setting])


def test_every_packaged_recipe_is_valid_and_survives_the_round_trip(tmp_path):
    assert {"digits", "fashion_mnist", "cifar10", "cifar100"} <= set(list_recipes())
    for name in list_recipes():
        recipe = load_recipe(name)
        (tmp_path / "copy.yaml").write_text(recipe.to_yaml())
        assert load_recipe(tmp_path / "copy.yaml") == recipe


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"did you mean digits\?"):
        load_recipe("digit")


def test_the_rate_follows_the_published_schedule():
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimizerConfig(lr=3e-4))
    schedule = ScheduleConfig(
        epochs=300, warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, cooldown_epochs=10
    )

    def rate(epoch: int) -> float:
        set_rate(optimizer, schedule, epoch)
        return optimizer.param_groups[0]["lr"]

    assert rate(0) == pytest.approx(1e-6)
    assert rate(10) == pytest.approx((1e-6 + 3e-4) / 2)
    assert rate(150) == pytest.approx((1e-5 + 3e-4) / 2)
    assert rate(299) > rate(300) == rate(309) == pytest.approx(1e-5)


def test_vectors_are_not_decayed():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    decayed, free = build_optimizer(model, OptimizerConfig()).param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert free["weight_decay"] == 0


def test_tet_is_the_mean_over_steps_plus_the_pull():
    steps, target = torch.randn(3, 4, 5), torch.tensor([0, 1, 2, 3])
    entropy = sum(-step.log_softmax(-1)[range(4), target].mean() for step in steps) / 3
    expected = 0.999 * entropy + 0.001 * ((steps - 1) ** 2).mean()
    assert tet_loss(steps, target, 0.001) == pytest.approx(expected.item(), rel=1e-6)


def test_mixup_blends_images_and_targets_alike():
    from spikedriven import create_model

    model = create_model("sdt_tiny", width=16, num_heads=1)
    labels = torch.arange(6)
    images = torch.nn.functional.one_hot(labels, 10).float()[:, None, None, :]
    blend, target = mixed(images, labels, 0.5, model, (1, 2, 3))
    assert torch.allclose(blend[:, 0, 0], target)
    assert torch.allclose(target.sum(-1), torch.ones(6))
    assert torch.equal(blend, mixed(images, labels, 0.5, model, (1, 2, 3))[0])
    assert not torch.equal(blend, mixed(images, labels, 0.5, model, (1, 2, 4))[0])
