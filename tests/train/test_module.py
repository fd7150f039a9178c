"""One step: the loss, the optimiser and its rate are the published ones."""

import pytest
import torch

from spikedriven import create_model
from spikedriven.data import open_data
from spikedriven.train.config import LossConfig, OptimizerConfig, ScheduleConfig
from spikedriven.train.losses import loss_of_steps, tet_loss
from spikedriven.train.module import build_optimizer, mixed, set_rate
from spikedriven.train.recipe import load_recipe


def test_eight_images_are_learned_by_heart():
    torch.manual_seed(0)
    recipe = load_recipe("digits", ["data.image_size=8", "optimizer.lr=1e-2"])
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


def test_without_tet_the_loss_is_that_of_the_mean_over_time():
    steps, target = torch.randn(3, 4, 5), torch.tensor([0, 1, 2, 3])
    log_probability = steps.mean(0).log_softmax(-1)
    smooth = 0.9 * torch.nn.functional.one_hot(target, 5) + 0.1 / 5
    expected = -(smooth * log_probability).sum(-1).mean()
    found = loss_of_steps(steps, target, LossConfig(label_smoothing=0.1))
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_lamb_is_timms_with_the_same_groups():
    model = torch.nn.Linear(2, 3)
    optimizer = build_optimizer(model, OptimizerConfig(name="lamb", lr=0.1, weight_decay=0.01))
    assert type(optimizer).__module__ == "timm.optim.lamb"
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0]


def test_mixup_blends_images_and_targets_alike():
    model = create_model("sdt_tiny", width=16, num_heads=1)
    labels = torch.arange(6)
    images = torch.nn.functional.one_hot(labels, 10).float()[:, None, None, :]
    blend, target = mixed(images, labels, 0.5, model, (1, 2, 3))
    assert torch.allclose(blend[:, 0, 0], target)
    assert torch.allclose(target.sum(-1), torch.ones(6))
    assert torch.equal(blend, mixed(images, labels, 0.5, model, (1, 2, 3))[0])
    assert not torch.equal(blend, mixed(images, labels, 0.5, model, (1, 2, 4))[0])
