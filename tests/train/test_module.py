"""One step: the loss, the optimiser and its rate are the published ones."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tests.helpers.golden import FOLDER, Golden

from spikedriven import create_model
from spikedriven.data import open_data
from spikedriven.train.config import LossConfig, OptimizerConfig, ScheduleConfig
from spikedriven.train.log import quiet_lightning
from spikedriven.train.losses import loss_of_steps, tet_loss
from spikedriven.train.mix import mixed
from spikedriven.train.module import Training, build_optimizer, set_rate
from spikedriven.train.recipe import load_recipe
from spikedriven.train.recompute import recompute_blocks

# Sums of a few thousand float64 terms in another order, through five updates.
STEP_BAND = 1e-9


def test_five_training_steps_are_the_released_codes():
    golden, expected = Golden("cifar_tiny"), np.load(FOLDER / "cifar_tiny_steps.npz")
    recipe = load_recipe("cifar10", ["schedule.warmup_epochs=0"])
    model = golden.model().train()
    optimizer = build_optimizer(model, recipe.optimizer)
    set_rate(optimizer, recipe.schedule, 0)
    losses = []
    for _ in expected["losses"]:
        optimizer.zero_grad()
        loss = loss_of_steps(model.forward_steps(golden["input"]), golden["target"], recipe.loss)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.abs(losses - expected["losses"]).max() < STEP_BAND
    with torch.no_grad():
        logits = model.eval()(golden["input"])
    assert np.abs(logits.numpy() - expected["logits"]).max() < STEP_BAND


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


def test_under_tet_the_targets_of_every_step_are_smoothed():
    steps, target = torch.randn(3, 4, 5), torch.tensor([0, 1, 2, 3])
    smooth = 0.7 * torch.nn.functional.one_hot(target, 5) + 0.3 / 5
    entropy = -(smooth * steps.log_softmax(-1)).sum(-1).mean()
    expected = 0.9 * entropy + 0.1 * ((steps - 1) ** 2).mean()
    found = loss_of_steps(steps, target, LossConfig(tet_weight=0.1, label_smoothing=0.3))
    assert found == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("setting", "mixes"),
    [
        (["loss.mixup=1", "loss.mixup_epochs=2"], [True, True, False, False]),
        (["loss.cutmix=1"], [True] * 4),
        (["loss.cutmix=1", "loss.mixup_epochs=0"], [False] * 4),
        ([], [False] * 4),
    ],
)
def test_as_many_epochs_are_mixed_as_the_recipe_says(monkeypatch, setting, mixes):
    recipe = load_recipe("digits", ["schedule.epochs=4", *setting])
    training = Training(create_model("sdt_tiny", width=8, num_heads=1), recipe)
    found = []
    for epoch in range(4):
        monkeypatch.setattr(Training, "current_epoch", epoch)
        found.append(training._mixes())
    assert found == mixes


def test_what_a_step_logs_is_read_only_when_it_is_asked_for(monkeypatch):
    """To read a value waits for the device."""
    training = Training(create_model("sdt_tiny", width=8, num_heads=1), load_recipe("digits"))
    monkeypatch.setattr(Training, "log", lambda *_arguments, **_keywords: None)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "__float__"):
            patch.setattr(torch.Tensor, name, lambda _tensor: pytest.fail("a step has waited"))
        training._note("loss", torch.tensor(0.5, dtype=torch.float64))
        training._note("firing_rate", 0.25)
    assert training.logged == {"loss": 0.5, "firing_rate": 0.25}
    state = {"state_dict": training.state_dict()}
    training.on_save_checkpoint(state)
    assert state["row"] == training.logged
    training.row = {}
    training.on_load_checkpoint(state)
    assert training.logged == state["row"]


@pytest.mark.parametrize("is_quiet", [True, False])
def test_timm_says_nothing_of_a_schedule_of_one_epoch(caplog, is_quiet):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig())
    with quiet_lightning() if is_quiet else nullcontext():
        set_rate(optimizer, ScheduleConfig(epochs=1), 0)
    assert bool(caplog.records) != is_quiet


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


def coded(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose every pixel is their class as a unit vector over the channels."""
    labels = torch.arange(count)
    one_hot = torch.nn.functional.one_hot(labels, 10).float()
    return one_hot[:, :, None, None].expand(-1, -1, 8, 12).contiguous(), labels


@pytest.mark.parametrize("config", [LossConfig(mixup=0.5), LossConfig(cutmix=1.0)])
def test_mixing_gives_each_target_the_share_that_its_images_have(config):
    images, labels = coded(6)
    shares = []
    for step in range(20):
        blend, target = mixed(images, labels, 10, config, (0, 0, step))
        assert torch.allclose(blend.mean(dim=(-2, -1)), target, atol=1e-6)
        assert torch.allclose(target.sum(-1), torch.ones(6))
        assert torch.equal(blend, mixed(images, labels, 10, config, (0, 0, step))[0])
        shares.append(target[0].max().item())
    assert len(set(shares)) > 10


def test_cutmix_puts_in_one_rectangle_and_mixup_touches_every_pixel():
    images, labels = coded(6)
    is_whole = [
        bool((mixed(images, labels, 10, config, (0, 0, step))[0] % 1 == 0).all())
        for config in (LossConfig(cutmix=1.0), LossConfig(mixup=1.0))
        for step in range(5)
    ]
    assert is_whole == [True] * 5 + [False] * 5


def test_so_many_batches_are_mixed_and_so_many_of_them_cut():
    images, labels = coded(6)
    config = LossConfig(mixup=0.2, cutmix=1.0, mix_probability=0.6, mix_switch=0.25)
    kinds = {"plain": 0, "cut": 0, "blend": 0}
    for step in range(400):
        blend, target = mixed(images, labels, 10, config, (0, 0, step))
        if target.ndim == 1:
            kinds["plain"] += 1
        else:
            kinds["cut" if bool((blend % 1 == 0).all()) else "blend"] += 1
    # Three standard deviations of a binomial count of 400 are at most 30.
    for kind, expected in (("plain", 160), ("cut", 60), ("blend", 180)):
        assert abs(kinds[kind] - expected) <= 30, kinds


def test_recomputed_blocks_give_the_same_bits_and_keep_less():
    torch.manual_seed(0)
    whole = create_model("sdt_tiny", width=16, num_heads=1).train()
    again = copy.deepcopy(whole)
    recompute_blocks(again)
    x = torch.rand(4, 1, 16, 16) * 3

    def kept(model) -> int:
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model.forward_steps(x).square().mean()
        loss.backward()
        return sum(sizes)

    kept_whole, kept_again = kept(whole), kept(again)
    assert kept_again < 0.7 * kept_whole
    assert whole.state_dict().keys() == again.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    for (name, one), other in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_recomputed_blocks_take_a_layer_that_does_not_learn():
    model = create_model("sdt_tiny", width=16, num_heads=1).train()
    recompute_blocks(model)
    model.blocks[0].attention.query.requires_grad_(False)
    model.forward_steps(torch.rand(4, 1, 16, 16) * 3).square().mean().backward()
    assert model.blocks[0].attention.query.conv.weight.grad is None
    assert model.blocks[0].attention.key.conv.weight.grad is not None
