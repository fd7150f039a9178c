"""A teacher: what is followed is its answer to the same image, and it never changes."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from spikedriven.data import DataInfo, sources
from spikedriven.errors import CheckpointError, ConfigError
from spikedriven.train.config import DistillConfig
from spikedriven.train.distill import Teacher, distillation_loss, open_teacher
from spikedriven.train.fit import fit, resume
from spikedriven.train.module import Training
from spikedriven.train.recipe import load_recipe

INFO = DataInfo(
    name="made", classes=("a", "b", "c"), in_channels=3, image_size=32,
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip
NAME = "test_resnet"  # timm's smallest


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save(timm.create_model(NAME, num_classes=3).state_dict(), path)
    return str(path)


def test_soft_is_hintons_and_hard_is_the_first_choice():
    torch.manual_seed(0)
    logits, answers = torch.randn(2, 5, 7, dtype=torch.float64)
    for t in (1.0, 3.0):
        p, q = (answers / t).softmax(-1), (logits / t).softmax(-1)
        expected = t * t * (p * (p / q).log()).sum(-1).mean()
        found = distillation_loss(logits, answers, DistillConfig(temperature=t))
        assert found == pytest.approx(expected.item(), rel=1e-12)
    hard = distillation_loss(logits, answers, DistillConfig(hard=True))
    best = answers.argmax(-1)
    assert hard == pytest.approx(-logits.log_softmax(-1)[range(5), best].mean().item(), rel=1e-12)


def test_a_teacher_sees_pixels_normalised_as_it_knows_them(weights):
    teacher = open_teacher(DistillConfig(teacher=NAME, weights=weights), INFO)
    cfg = teacher.network.pretrained_cfg
    pixels = torch.rand(2, 3, teacher.size, teacher.size)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    expected = teacher.network(normalised(cfg["mean"], cfg["std"]))
    # Rounding of the second normalisation.
    assert torch.allclose(teacher(normalised(INFO.mean, INFO.std)), expected, atol=1e-5)
    assert teacher(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("config", "info", "error", "sentence"),
    [
        ({"teacher": "resnet_1"}, INFO, ConfigError, "which timm does not know"),
        ({"teacher": NAME, "weights": "/nowhere.pth"}, INFO, CheckpointError, "cannot be loaded"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(config, info, error, sentence):
    with pytest.raises(error, match=sentence):
        open_teacher(DistillConfig(**config), info)


def test_a_teacher_of_grey_images_or_other_classes_is_refused(weights):
    grey = replace(INFO, in_channels=1, mean=(0.5,), std=(0.5,))
    with pytest.raises(ConfigError, match="colour images"):
        open_teacher(DistillConfig(teacher=NAME), grey)
    four = replace(INFO, classes=tuple("abcd"))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        open_teacher(DistillConfig(teacher=NAME, weights=weights), four)
    for key in ("weight=0", "weight=2", "temperature=0"):
        with pytest.raises(ConfigError, match=key.partition("=")[0]):
            load_recipe("digits", [f"distill.{key}"])


def test_a_run_with_a_teacher_resumes_and_its_checkpoints_do_not_hold_it(
    weights, tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8))
    part = pixels, np.arange(12) % 3
    monkeypatch.setitem(sources._SOURCES, "cifar10", lambda *_: (INFO, part, None, part))
    recipe = load_recipe("cifar10", [
        "model.depth=1", "model.width=16", "data.batch_size=4", "data.validation_fraction=0.3",
        "schedule.epochs=2", "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0",
        f"distill.teacher={NAME}", f"distill.weights={weights}", "trainer.checkpoint_every=1",
    ])  # fmt: skip
    fit(recipe, run_dir=tmp_path / "whole")
    original = Training.training_step

    def stops(self, batch, batch_index):
        assert not any("teacher" in name for name in self.state_dict())
        if (self.current_epoch, batch_index) == (1, 1):
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "training_step", stops)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, run_dir=tmp_path / "cut")
    resume(tmp_path / "cut")
    whole, cut = (
        load_file(tmp_path / run / "checkpoints/last.safetensors") for run in ("whole", "cut")
    )
    assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())
    assert isinstance(open_teacher(recipe.distill, INFO), Teacher)
