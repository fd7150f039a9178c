"""Is it really spike-driven? Every operation of a forward pass, looked at with its operands.

A synapse adds where there is a spike: so each operand of each convolution, linear map and product
that is no weight must be exactly 0 or 1. What a neuron does with its own membrane, and a batch norm
that folds into the weights before it, is not judged; everything else is, in any `torch.nn.Module`.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.nn.neuron import LIF

# Operation -> which of its arguments are multiplied.
_SYNAPSES = {
    "convolution": (0, 1),
    "mm": (0, 1),
    "addmm": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "dot": (0, 1),
    "linear": (0, 1),
}
_PRODUCTS = {"mul": (0, 1), "mul_": (0, 1), "div": (0, 1), "div_": (0, 1), "addcmul": (1, 2)}
_AVERAGES = {"mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d"}
_MAXIMA = {"max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "mkldnn_max_pool2d"}
_REAL_FUNCTIONS = {
    "_softmax", "_log_softmax", "exp", "gelu", "silu", "sigmoid", "tanh", "sqrt", "rsqrt", "pow",
    "native_layer_norm", "native_group_norm", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "mkldnn_rnn_layer",
}  # fmt: skip
_NORMS = (nn.modules.batchnorm._BatchNorm,)
# Modules with weights are judged by what comes in: what they do inside need not be torch's own.
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_LINEARS = (nn.Linear,)
_NONE: tuple[int | None, int] = (None, -1)

_FIRST = "the first synapse meets the image, which is no spike"
_LAST = "an average of the answers, behind the last synapse"
SDT_EXCEPTIONS = {
    ("stem.image.conv", "convolution"): _FIRST,
    ("stem", "maximum"): "the stem's last pool compares membranes; nothing is multiplied",
    ("", "average"): "the mean over tokens, which folds into the head's threshold as a sum",
}
"""(module, operation) -> why a Spike-driven Transformer may do it with reals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One operation of one module that computed with something other than spikes."""

    module: str
    """Name of the module in whose `forward` it stands; empty for the model itself."""
    operation: str
    """`convolution`, `linear`, `product`, `average`, `maximum`, or the function's name."""
    what: str
    """What was seen the first time, in words."""
    times: int
    """How often."""
    reason: str = ""
    """Why it is allowed; empty for a violation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    checked: int
    """Operations that were looked at."""
    violations: tuple[Finding, ...]
    exceptions: tuple[Finding, ...]
    """What is allowed, and why."""

    @property
    def ok(self) -> bool:
        """Whether there is no violation."""
        return not self.violations


@torch.no_grad()
def audit(
    model: nn.Module,
    x: Tensor,
    *,
    neurons: tuple[type[nn.Module], ...] = (LIF,),
    allowed: Mapping[tuple[str, str], str] | None = None,
) -> AuditReport:
    """Check that every synapse and every product of a forward pass sees exact spikes.

    Args:
        model: Any module; it is left in the mode it was in, and run in evaluation mode.
        x: Its input, on which something should fire: silence proves nothing.
        neurons: Kinds of modules whose inner arithmetic is a membrane's own. What they emit is
            judged where it arrives.
        allowed: (module, operation) -> why; by default the three of `SDT_EXCEPTIONS` for our model
            and the first synapse for any other. An average behind the last synapse is always an
            exception.

    Returns:
        Violations, exceptions, and how many operations were looked at.

    Example:
        A softmax is no spike:

        >>> audit(nn.Softmax(-1), torch.zeros(1, 3)).violations[0].operation
        'softmax'
    """
    if allowed is None and isinstance(model, SpikeDrivenTransformer):
        allowed = SDT_EXCEPTIONS
    was_training = model.training
    model.eval()
    watch = _Watch(model)
    try:
        with _entering(model, watch, neurons), watch:
            model(x)
    finally:
        model.train(was_training)
    return watch.report(allowed)


@dataclass(frozen=True, slots=True)
class _Seen:
    order: int
    """Place in the sequence of judged operations."""
    module: str
    operation: str
    what: str


class _Watch(TorchDispatchMode):
    """Sees every tensor operation, and knows its module and which of its tensors are weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path: list[str] = [""]
        self.unjudged = 0
        """How many neurons or norms are being run, one inside the other."""
        self.at_the_door = 0
        """How many modules are being run whose input was judged when it came in."""
        self._weights = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*model.parameters(), *model.buffers())
        }
        self._derived: dict[int, weakref.ref[Tensor]] = {}
        self._seen: list[_Seen] = []
        self._checked = 0
        self._synapses = _NONE
        """Order of the first and of the last operation with weights or two operands."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.unjudged:
            self._judge(func.overloadpacket.__name__, args)
        result = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and all(map(self._is_weight, given)):
            for made in tree_leaves(result):
                if isinstance(made, Tensor):
                    self._derived[id(made)] = weakref.ref(made)
        return result

    def report(self, allowed: Mapping[tuple[str, str], str] | None) -> AuditReport:
        merged: dict[tuple[str, str, str], list[_Seen]] = {}
        for seen in self._seen:
            reason = "" if allowed is None else allowed.get((seen.module, seen.operation), "")
            if seen.operation == "average" and seen.order > self._synapses[-1]:
                reason = _LAST
            if allowed is None and seen.order == self._synapses[0]:
                reason = _FIRST
            merged.setdefault((seen.module, seen.operation, reason), []).append(seen)
        findings = [
            Finding(
                module=module, operation=operation, what=group[0].what, times=len(group),
                reason=reason,
            )
            for (module, operation, reason), group in merged.items()
        ]  # fmt: skip
        return AuditReport(
            checked=self._checked,
            violations=tuple(found for found in findings if not found.reason),
            exceptions=tuple(found for found in findings if found.reason),
        )

    def _judge(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _SYNAPSES:
            operands = [args[i] for i in _SYNAPSES[name]]
            has_weights = any(map(self._is_weight, operands))
            if has_weights and self.at_the_door:
                return
            kind = "convolution" if name == "convolution" else "linear"
            self.judge_synapse(kind if has_weights else "product", operands)
            return
        if name in _PRODUCTS:
            self._check_operands("product", [args[i] for i in _PRODUCTS[name]])
        elif name in _AVERAGES and not self._is_weight(args[0]):
            self._note("average", "numbers are averaged, and what comes out is no spike")
        elif name in _MAXIMA and (strange := _strange(args[0])):
            self._note("maximum", f"it compares {strange}")
        elif name in _REAL_FUNCTIONS and not self._is_weight(args[0]):
            self._note(name.strip("_"), "a function of real numbers")
        else:
            return
        self._checked += 1

    def judge_synapse(self, kind: str, operands: list[Any]) -> None:
        """Judge what meets weights, or what meets what."""
        first, _ = self._synapses
        self._synapses = (self._checked if first is None else first, self._checked)
        self._check_operands(kind, operands)
        self._checked += 1

    def _check_operands(self, kind: str, operands: list[Any]) -> None:
        tensors = [t for t in operands if isinstance(t, Tensor) and not self._is_weight(t)]
        for operand in tensors:
            if strange := _strange(operand):
                self._note(kind, f"an operand holds {strange}")
                return

    def _note(self, operation: str, what: str) -> None:
        self._seen.append(_Seen(self._checked, self.path[-1], operation, what))

    def _is_weight(self, tensor: Any) -> bool:
        if not isinstance(tensor, Tensor):
            return True
        derived = self._derived.get(id(tensor))
        return tensor.untyped_storage().data_ptr() in self._weights or (
            derived is not None and derived() is tensor
        )


@contextmanager
def _entering(
    model: nn.Module, watch: _Watch, neurons: tuple[type[nn.Module], ...]
) -> Iterator[None]:
    """Tell `watch` which module runs."""
    stops = []

    def listen(name: str, module: nn.Module) -> None:
        is_inner = isinstance(module, (*neurons, *_NORMS))
        has_weights = isinstance(module, (*_CONVOLUTIONS, *_LINEARS))
        kind = "linear" if isinstance(module, _LINEARS) else "convolution"

        def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            watch.path.append(name)
            if has_weights and not watch.unjudged:
                watch.judge_synapse(kind, list(inputs[:1]))
            watch.unjudged += is_inner
            watch.at_the_door += has_weights

        def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
            watch.path.pop()
            watch.unjudged -= is_inner
            watch.at_the_door -= has_weights

        stops.append(module.register_forward_pre_hook(enter))
        stops.append(module.register_forward_hook(leave, always_call=True))

    for name, module in model.named_modules():
        listen(name, module)
    try:
        yield
    finally:
        for stop in stops:
            stop.remove()


def _strange(operand: Tensor) -> str:
    """Say what is neither 0 nor 1 among some numbers; nothing where all are."""
    if operand.dtype == torch.bool:
        return ""
    strange = operand[(operand != 0) & (operand != 1)]
    if not strange.numel():
        return ""
    return f"numbers other than 0 and 1, such as {strange.flatten()[0].item():.4g}"
