"""Every registered model keeps every rule; planted models break them, and are caught."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

import spikedriven as sd
from spikedriven.conform import RULES, conform, enlivened
from spikedriven.errors import ShapeError
from spikedriven.models.variants import VARIANTS
from tests.helpers.golden import NAMES, Golden

SMALL = sd.SDTConfig(1, 32, 5, num_heads=4, num_steps=3, stem_pool="0011")
NOT_ASKED = {"parity with the released code"}


def small(name):
    """Return a registered model made small, and frames of bytes on which it fires."""
    published = VARIANTS[name].config
    config = replace(
        published, depth=1, width=64, num_classes=5, num_steps=min(5, published.num_steps)
    )
    return living(sd.SpikeDrivenTransformer(config))


def living(model):
    config = model.config
    side = 3 * config.stride
    shape = (2, config.num_steps, config.in_channels, side, side)
    x = torch.randint(0, 256, shape).float() / 255
    return enlivened(model, x), x


@cache
def alive():
    torch.manual_seed(0)
    return living(sd.SpikeDrivenTransformer(SMALL))


def verdicts(result):
    return {verdict.rule: verdict.held for verdict in result.verdicts}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_registered_model_keeps_every_rule(name):
    result = conform(*small(name))
    assert result.ok, [verdict for verdict in result.verdicts if verdict.held is False]
    assert {rule for rule, held in verdicts(result).items() if held is None} == NOT_ASKED


@pytest.mark.parametrize("name", NAMES)
def test_where_golden_figures_exist_parity_is_asked(name):
    golden = Golden(name)
    model, x = golden.model(), golden["input"]
    x = x if x.ndim == 5 else x.unsqueeze(1).expand(-1, model.config.num_steps, -1, -1, -1)
    logits = golden["eval/logits"]
    logits = logits.mean(0) if logits.ndim == 3 else logits
    assert conform(model, x, expected=logits)["parity with the released code"].held is True
    assert conform(model, x, expected=logits + 1e-8)["parity with the released code"].held is False


def test_pixels_that_are_no_bytes_are_not_asked_of_the_engine():
    model, x = alive()
    verdict = conform(model, x - 0.5)["counted additions are the executed ones"]
    assert verdict.held is None
    assert "they must lie in 0 to 255" in verdict.detail


# ------------------------------------------------------------------ planted


class LeaksBetweenSamples(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        steps = super().forward_steps(x)
        return steps + steps.mean(1, keepdim=True)


class SeesTheFuture(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        steps = super().forward_steps(x)
        return steps + steps.mean(0, keepdim=True)


class Remembers(sd.SpikeDrivenTransformer):
    calls = 0

    def forward_steps(self, x):
        self.calls += 1
        return super().forward_steps(x) + self.calls


class ThrowsDice(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        steps = super().forward_steps(x)
        return steps + torch.randn_like(steps)


class KnowsTheLength(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        return super().forward_steps(x) + x.shape[1]


class AnswersOnce(sd.SpikeDrivenTransformer):
    """However many frames there are, it answers after the first alone."""

    def forward_steps(self, x):
        return super().forward_steps(x)[:1]


class AnswersTooOften(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        steps = super().forward_steps(x)
        missing = steps[-1:].expand(self.config.num_steps - len(steps), -1, -1)
        return torch.cat([steps, missing])


class AveragesOtherwise(sd.SpikeDrivenTransformer):
    def forward(self, x):
        return self.forward_steps(x)[-1]


class HasADeadParameter(sd.SpikeDrivenTransformer):
    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Parameter(torch.ones(()))


class HasASilencedParameter(sd.SpikeDrivenTransformer):
    def __init__(self, config):
        super().__init__(config)
        self.zeroed = nn.Parameter(torch.ones(()))

    def forward_steps(self, x):
        return super().forward_steps(x) + 0 * self.zeroed


class ScalesItsStream(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        stop = self.blocks[-1].register_forward_hook(
            lambda _block, _inputs, us: (us[0] * 0.75, None)
        )
        try:
            return super().forward_steps(x)
        finally:
            stop.remove()


class RunsItsLastBlockTwice(sd.SpikeDrivenTransformer):
    """What is counted then is no longer what the compiled program executes."""

    def __init__(self, config):
        super().__init__(config)
        self.blocks[-1].register_forward_hook(
            lambda block, _inputs, us: block.forward(us[0], block.attention.fire(us[0]), None)
        )


TIME = {"causality in time", "step by step equals all at once"}
CALLS = {"batch invariance", "no state between calls", "determinism"}
PLANTED = {
    sd.SpikeDrivenTransformer: set(),
    LeaksBetweenSamples: {"batch invariance"},
    SeesTheFuture: TIME,
    Remembers: CALLS | TIME,
    ThrowsDice: CALLS | TIME,
    AnswersOnce: {"step by step equals all at once"},
    AnswersTooOften: {"step by step equals all at once"},
    KnowsTheLength: {"step by step equals all at once"},
    AveragesOtherwise: {"step by step equals all at once"},
    HasADeadParameter: {"every parameter gets a gradient"},
    HasASilencedParameter: {"every parameter gets a gradient"},
    ScalesItsStream: {"only spikes meet weights"},
    RunsItsLastBlockTwice: {"counted additions are the executed ones"},
}


@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: kind.__name__)
def test_a_planted_model_breaks_the_rules_it_was_made_to_break_and_no_other(kind):
    torch.manual_seed(0)
    result = conform(*living(kind(SMALL)))
    broken = {rule for rule, held in verdicts(result).items() if held is False}
    assert broken == PLANTED[kind]
    assert result.ok == (not broken)


def test_every_rule_but_parity_has_a_model_that_breaks_it():
    assert set().union(*PLANTED.values()) | {"it fires"} == set(RULES) - NOT_ASKED


def test_a_silent_model_keeps_every_rule_but_that_it_fires():
    model, x = alive()
    silent = deepcopy(model)
    for module in silent.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.fill_(-99.0)
    result = conform(silent, x)
    assert {rule for rule, held in verdicts(result).items() if held is False} == {"it fires"}
    assert "stem.second" in result["it fires"].detail


def test_a_rule_under_which_the_model_fails_is_broken_and_the_others_are_asked():
    class FailsAlone(sd.SpikeDrivenTransformer):
        def forward(self, x):
            if len(x) == 1:
                raise RuntimeError("one is\nnot enough")
            return super().forward(x)

    torch.manual_seed(0)
    result = conform(*living(FailsAlone(SMALL)))
    broken = {verdict.rule: verdict.detail for verdict in result.verdicts if verdict.held is False}
    assert set(broken) == {"batch invariance", "no state between calls"}
    assert set(broken.values()) == {"it failed with RuntimeError: one is not enough"}


def test_one_step_has_no_future():
    torch.manual_seed(0)
    model, x = living(sd.SpikeDrivenTransformer(replace(SMALL, num_steps=1)))
    result = conform(model, x)
    assert result.ok
    assert result["causality in time"].held is None


def test_a_state_that_starts_anew_for_another_size_of_batch_is_a_state():
    class Accumulates(sd.SpikeDrivenTransformer):
        last = None

        def forward_steps(self, x):
            steps = super().forward_steps(x)
            fits = self.last is not None and self.last.shape == steps.shape
            self.last, steps = steps, steps + self.last if fits else steps
            return steps

    torch.manual_seed(0)
    model, x = living(Accumulates(replace(SMALL, num_steps=1)))
    assert conform(model, x)["no state between calls"].held is False


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it_the_same_is_asked(mode):
    model, x = alive()
    with mode():
        inside = conform(model, x)
    assert inside == conform(model, x)


def test_sequences_that_end_alike_cannot_show_what_meets():
    model, x = alive()
    alike = x.clone()
    alike[:, -1] = alike[:1, -1]
    for bad in (x[:1].expand_as(x), alike):
        with pytest.raises(ShapeError, match=r"end alike; .* differ in the last frame"):
            conform(model, bad)


def test_every_rule_is_asked_and_nothing_is_changed():
    model, x = alive()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert set(verdicts(conform(model, x))) == set(RULES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_sequence_cannot_show_that_samples_do_not_meet():
    model, x = alive()
    for bad in (x[:1], x[:, 0]):
        with pytest.raises(ShapeError, match="at least two sequences"):
            conform(model, bad)
