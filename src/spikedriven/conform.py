"""What every model of this package promises, as rules that can be broken and are then named.

A room of its own, because it looks from above at rooms that must not know each other: additions
that `energy` counts and `engine` executes are compared here.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spikedriven.energy.audit import audit
from spikedriven.energy.counts import count
from spikedriven.engine.compile import compile as compile_model
from spikedriven.engine.reference import run_reference
from spikedriven.errors import ConfigError, ShapeError
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.nn.probe import spike_sources

Model = TypeVar("Model", bound=nn.Module)

# In double precision logits agree to some 1e-13; one spike more or less moves one by a weight over
# T and the number of tokens, far above this.
LOGITS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One rule, and whether a model keeps it."""

    rule: str
    held: bool | None
    """None where the rule cannot be asked of this model."""
    detail: str
    """What was compared, or what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance:
    """All rules."""

    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return all(verdict.held is not False for verdict in self.verdicts)

    def __getitem__(self, rule: str) -> Verdict:
        return next(verdict for verdict in self.verdicts if verdict.rule == rule)


@dataclass(frozen=True, slots=True)
class _Subject:
    model: Any
    """In double precision and evaluation mode."""
    x: Tensor
    """[B, T, C, H, W]."""
    expected: Tensor | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def conform(
    model: nn.Module,
    x: Tensor,
    *,
    expected: Tensor | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Conformance:
    """Ask every rule of a model.

    Args:
        model: A module with `forward(x)`, which gives logits [B, K], and `forward_steps(x)`, which
            gives them after every step, [T, B, K]. A copy in double precision is asked.
        x: Frames [B, T, C, H, W] on which it fires, at least two samples that differ to the last
            frame, each frame another. (byte / 255 - mean) / std, if the additions are to be
            compared.
        expected: The released code's logits for `x` in double precision, where they are known.
        mean: As in `sd.compile`; by default 0.
        std: As in `sd.compile`; by default 1.

    Returns:
        A verdict on each of `RULES`.

    Raises:
        ShapeError: `x` is no sequence, or has fewer than two samples, or all end alike.
    """
    if x.ndim != 5 or len(x) < 2:
        raise ShapeError(
            f"the input is {tuple(x.shape)}; it must be at least two sequences [B, T, C, H, W]: "
            "stack some frames"
        )
    if (x[:, -1] == x[:1, -1]).all():
        raise ShapeError(
            f"the {len(x)} sequences end alike; two at least must differ in the last frame, or no "
            "rule would notice that they meet: stack others"
        )
    channels = x.shape[2]
    # A caller's modes are no reason to break a rule: one of them asks for gradients.
    with torch.inference_mode(False), torch.enable_grad():
        subject = _Subject(
            model=copy.deepcopy(model).double().eval(),
            x=x.double().clone(),
            expected=expected,
            mean=(0.0,) * channels if mean is None else mean,
            std=(1.0,) * channels if std is None else std,
        )
        verdicts = tuple(_verdict(rule, ask, subject) for rule, ask in RULES.items())
    return Conformance(verdicts=verdicts)


def _verdict(
    rule: str, ask: Callable[[_Subject], tuple[bool | None, str]], subject: _Subject
) -> Verdict:
    torch.manual_seed(0)
    try:
        held, detail = ask(subject)
    # A model that fails under a rule, however it may, breaks it; the others are asked.
    except Exception as error:  # noqa: BLE001
        text = " ".join(str(error).split())
        held, detail = False, f"it failed with {type(error).__name__}: {text}"
    return Verdict(rule=rule, held=held, detail=detail)


def enlivened(model: Model, x: Tensor) -> Model:
    """Let a fresh model fire: draw its batch norms' gains and biases, and measure what they need.

    Weights as they are initialised leave every neuron silent, and silence breaks no rule.

    Args:
        model: Changed in place, and left in evaluation mode.
        x: Its input.

    Returns:
        The model.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 1.2 * torch.exp(0.3 * torch.randn_like(module.weight))
            module.bias.data = 0.5 + 0.3 * torch.randn_like(module.bias)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


# ------------------------------------------------------------------ the rules


@torch.no_grad()
def _batch(of: _Subject) -> tuple[bool, str]:
    together = of.model(of.x)
    alone = torch.cat([of.model(of.x[b : b + 1]) for b in range(len(of.x))])
    return _equal(together, alone, "a sample's logits, alone and in a batch")


@torch.no_grad()
def _causality(of: _Subject) -> tuple[bool | None, str]:
    T = of.x.shape[1]
    if T < 2:
        return None, "one step has no future"
    steps = of.model.forward_steps(of.x)
    for t in range(1, T):
        other = of.x.clone()
        other[:, t:] = other[:, t:].flip(0)
        held, detail = _equal(of.model.forward_steps(other)[:t], steps[:t], f"steps before {t}")
        if not held:
            return False, f"{detail} when only later frames differ"
    return True, f"{T - 1} futures changed, no past"


@torch.no_grad()
def _no_state(of: _Subject) -> tuple[bool, str]:
    first = of.model(of.x)
    # Of another size, and of the same: a state may start anew where they differ.
    for other in (of.x.flip(0)[:1], of.x.flip(0)):
        of.model(other)
    held = torch.equal(of.model(of.x), first)
    return held, "logits before and after another input, bit for bit"


@torch.no_grad()
def _determinism(of: _Subject) -> tuple[bool, str]:
    first = of.model(of.x)
    torch.manual_seed(1)
    again = copy.deepcopy(of.model)(of.x.clone())
    return torch.equal(again, first), "logits of a copy with other random numbers, bit for bit"


@torch.no_grad()
def _stepwise(of: _Subject) -> tuple[bool, str]:
    steps, T = of.model.forward_steps(of.x), of.x.shape[1]
    if len(steps) != T:
        return False, f"{T} frames have {len(steps)} answers"
    for t in range(1, T):
        held, detail = _equal(of.model.forward_steps(of.x[:, :t]), steps[:t], f"{t} steps")
        if not held:
            return False, f"{detail} when the sequence ends there"
    held, detail = _equal(of.model(of.x), steps.mean(0), "logits and the mean of all steps")
    return (held, detail) if not held else (True, f"{len(steps)} sequences, cut at every step")


def _gradients(of: _Subject) -> tuple[bool, str]:
    # Through a layer that is silent no gradient passes, and rightly: the question is the wiring.
    model = enlivened(copy.deepcopy(of.model), of.x)
    steps = model.forward_steps(of.x)
    (steps * torch.randn_like(steps)).sum().backward()
    named = list(model.named_parameters())
    unreached = [n for n, p in named if p.grad is None or not p.grad.abs().sum() > 0]
    if unreached:
        return False, f"{len(unreached)} parameters get no gradient, such as {unreached[0]}"
    return True, f"all {len(named)} parameters get one"


def _fires(of: _Subject) -> tuple[bool, str]:
    report = audit(of.model, of.x)
    met = len(report.synapses) - len(report.silent)
    detail = f"{met} of {len(report.synapses)} synapses met a spike"
    if report.silent:
        detail += f", {report.silent[0]} none"
    return report.fires, detail


def _purity(of: _Subject) -> tuple[bool, str]:
    report = audit(of.model, of.x)
    if not report.ok:
        first = report.violations[0]
        return False, f"{first.module or 'the model'}: {first.operation}, {first.what}"
    return True, f"{report.checked} operations, {len(report.exceptions)} allowed exceptions"


@torch.no_grad()
def _parity(of: _Subject) -> tuple[bool | None, str]:
    if of.expected is None:
        return None, "no figures of the released code for this model"
    return _equal(of.model(of.x), of.expected.double(), "logits and the released code's")


@torch.no_grad()
def _additions(of: _Subject) -> tuple[bool | None, str]:
    if not isinstance(of.model, SpikeDrivenTransformer):
        return None, "the engine compiles SpikeDrivenTransformer alone"
    T = of.x.shape[1]
    try:
        program = compile_model(of.model, mean=of.mean, std=of.std, num_steps=T)
    except ConfigError as error:
        return None, f"the engine does not take the model: {error}"
    x = of.x.numpy()
    try:
        _, trace = run_reference(program, x)
    except ShapeError as error:
        return None, f"the engine cannot read the frames: {error}"
    with firing_as(of.model, trace.spikes):
        counts = count(of.model, of.x, mean=of.mean, std=of.std)
    executed = program.run(x)[1].additions
    return counted_is_executed(counts.additions, counts.of("bit_additions"), executed)


def counted_is_executed(
    counted: dict[str, int], bits: dict[str, int], executed: dict[str, int]
) -> tuple[bool, str]:
    """Compare additions layer by layer, exactly; the first layer's are those of its bit planes."""
    ours = {**bits, **counted}
    ours["head_lif"] = ours.pop("head")
    different = [
        name for name in ours.keys() | executed.keys() if ours.get(name) != executed.get(name)
    ]
    if different:
        name = min(different)
        return False, f"{name}: counted {ours.get(name)}, executed {executed.get(name)}"
    return True, f"{sum(ours.values()):,} additions in {len(ours)} layers, on the same spikes"


@contextmanager
def firing_as(model: nn.Module, spikes: dict[str, NDArray[np.bool_]]) -> Iterator[None]:
    """Let a model's neurons fire as recorded ones did, whatever their current.

    In a deep network one spike that a rounding turns becomes many, so that two programs are
    compared on the same spikes.

    Args:
        model: Any model built from this package's layers.
        spikes: Neurons' names -> spikes [T, B, H, W, C], or [T, B, C] without space. Neurons that
            are not named fire as they do.
    """

    def force(s: Tensor, _module: nn.Module, _inputs: object, own: Tensor) -> Tensor:
        return s.to(own.dtype)

    stops = []
    for name, module in spike_sources(model).items():
        if name in spikes:
            s = torch.from_numpy(spikes[name])
            s = s.movedim(-1, 2) if s.ndim == 5 else s
            stops.append(module.register_forward_hook(partial(force, s)))
    try:
        yield
    finally:
        for stop in stops:
            stop.remove()


def _equal(got: Tensor, wanted: Tensor, what: str) -> tuple[bool, str]:
    if got.shape != wanted.shape:
        return False, f"{what} differ in shape: {list(got.shape)} and {list(wanted.shape)}"
    distance = float((got - wanted).abs().max())
    if not distance <= LOGITS:
        return False, f"{what} differ by {distance:.2g}"
    return True, f"{what} agree to {LOGITS:g}"


RULES: dict[str, Callable[[_Subject], tuple[bool | None, str]]] = {
    "it fires": _fires,
    "batch invariance": _batch,
    "causality in time": _causality,
    "no state between calls": _no_state,
    "determinism": _determinism,
    "step by step equals all at once": _stepwise,
    "every parameter gets a gradient": _gradients,
    "only spikes meet weights": _purity,
    "parity with the released code": _parity,
    "counted additions are the executed ones": _additions,
}
"""Rule -> how it is asked."""
