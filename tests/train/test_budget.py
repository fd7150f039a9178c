"""The budget of additions: what is penalised is what is counted, and learning brings it down."""

import pytest
import torch
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.data import open_data
from spikedriven.energy.counts import count
from spikedriven.errors import ConfigError
from spikedriven.train.budget import executed_share, over_budget
from spikedriven.train.fit import fit
from spikedriven.train.recipe import load_recipe
from spikedriven.train.run import Run

SMALL = sd.SDTConfig(2, 16, 5, num_heads=2, stem_pool="0011", num_steps=2)
QKV = ("query", "key", "value")
ABOVE = 1.4
"""What test images may execute beside what training images did: they are others, and their norms
are the running ones."""


@pytest.mark.parametrize("part", ["all", "attention"])
def test_what_is_penalised_is_what_is_counted(part):
    model, x = lively(SMALL), torch.rand(3, 3, 16, 12)
    with executed_share(model, part) as share:
        model(x)
    counts = count(model, x)
    names = [n for n in counts.additions if part == "all" or n.endswith(QKV)]
    executed = sum(counts[name]["additions"] for name in names)
    dense = sum(counts[name]["dense"] for name in names)
    # Single precision adds up a few thousand terms: some 1e-6.
    assert share.value.item() == pytest.approx(executed / dense, rel=1e-5)


def test_its_gradient_is_each_spikes_fan_out():
    """Of 9 taps, a spike in the middle drives 9 times the outputs of the layer, a corner 4."""
    model = lively(SMALL)
    seen = []

    def keep(_layer, inputs):
        seen.append(inputs[0].requires_grad_())
        inputs[0].retain_grad()

    stop = model.stem.second.register_forward_pre_hook(keep)
    with executed_share(model) as share:
        model(torch.rand(1, 3, 8, 8))
    stop.remove()
    direct = torch.autograd.grad(share._executed[0], seen[0])[0]
    outputs = 4  # channels of the second stage
    assert torch.equal(direct[0, 0, 0, 1:-1, 1:-1], torch.full((6, 6), 9.0 * outputs))
    assert direct[0, 0, 0, 0, 0] == 4 * outputs
    assert direct[1, 0, 1, 0, 3] == 6 * outputs


def test_the_penalty_begins_at_the_budget():
    share = torch.tensor(0.2, requires_grad=True)
    assert over_budget(share, 0.2) == over_budget(share, 0.5) == 0
    assert over_budget(share, 0.02).item() == pytest.approx(2.302585, rel=1e-6)
    silent = torch.zeros((), requires_grad=True)
    over_budget(silent, 0.1).backward()
    assert silent.grad == 0


@pytest.mark.parametrize("part", ["all", "attention"])
def test_following_the_penalty_alone_lowers_the_count(part):
    model, x = lively(SMALL).train(), torch.rand(4, 3, 16, 16)

    def additions():
        counts = count(model.eval(), x)
        model.train()
        return sum(n for name, n in counts.additions.items() if part == "all" or name.endswith(QKV))

    before = additions()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        with executed_share(model, part) as share:
            model(x)
        over_budget(share.value, 0.01).backward()
        optimizer.step()
    assert additions() < 0.7 * before


def test_a_budget_is_kept_in_training(tmp_path):
    """A network that learned freely is brought within a quarter of what it executes."""
    settings = [
        "model.width=32", "model.num_heads=4", "model.depth=1", "model.num_steps=2",
        "data.image_size=8", "schedule.epochs=3", "schedule.warmup_epochs=0", "optimizer.lr=5e-3",
        "trainer.accelerator=cpu",
    ]  # fmt: skip

    def trained(name, *more):
        folder = tmp_path / name
        metrics = fit(load_recipe("digits", [*settings, *more]), run_dir=folder)
        run = Run.open(folder)
        test = open_data(run.recipe().data).test
        counts = count(run.model(), torch.stack([test[i][0] for i in range(len(test))]))
        additions = counts.additions
        dense = sum(counts[layer]["dense"] for layer in additions)
        return sum(additions.values()) / dense, metrics["test_accuracy"]

    budget = 0.025
    free, _ = trained("free")
    held, accuracy = trained(
        "held", f"model.weights={tmp_path / 'free'}", f"loss.energy_budget={budget}"
    )
    assert free > 3 * budget
    assert held < ABOVE * budget
    assert accuracy > 2 / 10  # not by falling silent: that would answer one of ten by chance
    assert "executed_share" in (tmp_path / "held" / "metrics.csv").read_text().splitlines()[0]


def test_without_a_budget_nothing_is_logged_or_added(tmp_path):
    settings = [
        "model.width=16", "model.num_heads=2", "model.depth=1", "model.num_steps=2",
        "data.image_size=8", "schedule.epochs=2",
    ]  # fmt: skip
    fit(load_recipe("digits", settings), run_dir=tmp_path / "run")
    assert "executed_share" not in (tmp_path / "run" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("loss.energy_budget=0", "loss.energy_budget is 0"),
        ("loss.energy_budget=1.5", r"in \(0, 1\]"),
        ("loss.energy_part=mlp", "all or attention"),
        ("loss.energy_weight=-1", "loss.energy_weight is -1"),
    ],
)
def test_a_budget_that_is_none_is_refused(setting, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_recipe("digits", [setting])
