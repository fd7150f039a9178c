"""Is it really spike-driven? Every operation of a forward pass, looked at with its operands.

A synapse adds where there is a spike: so each operand of each convolution, linear map and product
that is no weight must be exactly 0 or 1. Moves, comparisons, maxima of spikes and plain additions
are free; so is what a neuron does with its own membrane, number by number, and a batch norm that
folds into the weights before it. Everything else is named, in any `torch.nn.Module`.
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

from spikedriven.errors import ConfigError, ShapeError
from spikedriven.models.sdt import SpikeDrivenTransformer
from spikedriven.nn.neuron import LIF

# Operation -> which of its arguments are multiplied. Names are the dispatcher's, without the
# underscores that say "in place" or "internal".
_SYNAPSES = {
    "convolution": (0, 1),
    "mm": (0, 1),
    "addmm": (1, 2),
    "bmm": (0, 1),
    "baddbmm": (1, 2),
    "addbmm": (1, 2),
    "mv": (0, 1),
    "addmv": (1, 2),
    "addr": (1, 2),
    "dot": (0, 1),
    "linear": (0, 1),
    "sparse_addmm": (1, 2),
}
_PRODUCTS = {"mul": (0, 1), "div": (0, 1), "addcmul": (1, 2), "prod": (0,), "cumprod": (0,)}
_AFFINE = {"mul", "div", "addcmul", "add", "sub"}
_AVERAGES = {
    "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
}  # fmt: skip
_MAXIMA = {
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "mkldnn_max_pool2d",
    "mkldnn_max_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin", "aminmax",
    "cummax", "cummin", "max", "maximum", "min", "minimum",
}  # fmt: skip
# What moves numbers and computes nothing.
_MOVES = {
    "alias", "as_strided", "cat", "chunk", "clone", "constant_pad_nd", "contiguous", "copy",
    "detach", "diagonal", "embedding", "expand", "flatten", "flip", "gather", "im2col", "index",
    "index_copy", "index_put", "index_select", "lift", "lift_fresh", "masked_fill",
    "masked_scatter", "masked_select", "movedim", "narrow", "pad", "permute", "pixel_shuffle",
    "pixel_unshuffle", "put", "reflection_pad1d", "reflection_pad2d", "repeat", "repeat_interleave",
    "replication_pad1d", "replication_pad2d", "reshape", "reshape_alias", "resize", "roll",
    "scatter", "select", "select_scatter", "slice", "slice_scatter", "split",
    "split_with_sizes", "squeeze", "stack", "t", "take", "to", "to_copy", "to_dense", "to_sparse",
    "transpose", "tril", "triu", "unbind", "unfold", "unsafe_split", "unsafe_view", "unsqueeze",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "view", "view_as",
    "where",
}  # fmt: skip
# Sums with the signs of their terms, comparisons, logic; nothing here multiplies.
_ADDITIONS = {"add", "col2im", "sub", "rsub", "sum", "cumsum", "neg", "index_add", "scatter_add"}
_COMPARISONS = {
    "abs", "all", "allclose", "and", "any", "argmax", "argmin",
    "argsort", "bernoulli", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "clamp",
    "clamp_max", "clamp_min", "count_nonzero", "eq", "equal", "ge", "gt",
    "heaviside", "hardtanh", "invert", "isfinite", "isinf", "isnan", "le", "local_scalar_dense",
    "logical_and", "logical_not", "logical_or", "logical_xor", "lt", "nan_to_num",
    "ne", "nonzero", "or", "relu", "sign", "signbit", "sort", "threshold", "topk",
    "unique2", "xor",
}  # fmt: skip
# What makes a tensor, or looks at its form.
_MAKERS = {
    "empty", "empty_like", "empty_strided", "fill", "full", "full_like", "new_empty",
    "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones_like", "rand_like",
    "randn_like", "randint_like", "zero", "zeros_like",
}  # fmt: skip
_HARMLESS = _MOVES | _ADDITIONS | _COMPARISONS | _MAKERS
# Constants that a forward pass makes for itself are as good as weights.
_CONSTANTS = {"arange", "eye", "full", "linspace", "ones", "scalar_tensor"}
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
    synapses: tuple[str, ...]
    """Modules in which weights met anything, in the order of the first pass."""
    silent: tuple[str, ...]
    """Those of them that met nothing but zeros: of them the audit proves nothing."""

    @property
    def fires(self) -> bool:
        """Whether a spike reached any synapse behind the first, or the first where it is alone."""
        behind = self.synapses[1:] or self.synapses
        return not behind or not set(behind) <= set(self.silent)

    @property
    def ok(self) -> bool:
        """Whether there is no violation. A network that never fires has none: see `fires`."""
        return not self.violations


def audit(
    model: nn.Module,
    x: Tensor,
    *,
    neurons: tuple[type[nn.Module], ...] = (LIF,),
    allowed: Mapping[tuple[str, str], str] | None = None,
) -> AuditReport:
    """Check that every synapse and every product of a forward pass sees exact spikes.

    What is computed outside of torch, or by another thread, is not seen: what comes of it is judged
    where it arrives.

    Args:
        model: Any module; it is left in the mode it was in, and run in evaluation mode, twice: a
            buffer that holds a signal of an earlier call is no weight.
        x: Its input, on which something should fire: silence proves nothing, see `silent`.
        neurons: Kinds of modules whose arithmetic, number by number, is a membrane's own. Synapses
            and what joins neurons are judged inside of them too; what they emit, where it arrives.
        allowed: (module, operation) -> why; by default the three of `SDT_EXCEPTIONS` for our model
            and the first synapse for any other. An average behind the last synapse is always an
            exception.

    Returns:
        Violations, exceptions, silent synapses, and how many operations were looked at.

    Raises:
        ConfigError: The model is no module, a module is scripted, or model or input lies on meta.
        ShapeError: The input is no tensor.

    Example:
        A softmax is no spike:

        >>> audit(nn.Softmax(-1), torch.zeros(1, 3)).violations[0].operation
        'softmax'
    """
    _check_kinds(model, x)
    if allowed is None and isinstance(model, SpikeDrivenTransformer):
        allowed = SDT_EXCEPTIONS
    was_training = model.training
    model.eval()
    watch = _Watch(_stored(model))
    try:
        # In inference mode operations would not be taken apart before they are seen.
        with torch.inference_mode(False), torch.no_grad():
            x = x.clone()
            # Twice: what a pass writes into a buffer is a signal to the next, and no weight.
            for _ in range(2):
                watch = _Watch([tensor for tensor in _stored(model) if watch.is_weight(tensor)])
                with _entering(model, watch, neurons), watch:
                    model(x)
    finally:
        model.train(was_training)
    return watch.report(allowed)


def _check_kinds(model: object, x: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the model is a {type(model).__name__}; it must be a torch.nn.Module: pass the model "
            "itself"
        )
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"the input is of type {type(x).__name__}; it must be a tensor: convert it with "
            "torch.as_tensor"
        )
    if any(tensor.is_meta for tensor in (x, *_stored(model))):
        raise ConfigError(
            "a tensor on meta has no values; an audit must see them: give weights and pixels"
        )


def _stored(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@dataclass(frozen=True, slots=True)
class _Seen:
    order: int
    """Place in the sequence of judged operations."""
    module: str
    operation: str
    what: str


class _Tensors:
    """Some of the living tensors, by identity."""

    def __init__(self) -> None:
        self._living: dict[int, weakref.ref[Tensor]] = {}

    def add(self, made: Any) -> None:
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._living[id(tensor)] = weakref.ref(tensor)

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._living.get(id(tensor))
        return known is not None and known() is tensor

    def forget_storage(self, place: int) -> None:
        """Drop all that share memory which has been written to."""
        for key, known in list(self._living.items()):
            tensor = known()
            if tensor is None or _place(tensor) == place:
                del self._living[key]


class _Watch(TorchDispatchMode):
    """Sees every tensor operation, and knows its module and which of its tensors are weights."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path: list[str] = [""]
        self.in_neuron = 0
        """How many neurons are being run, one inside the other."""
        self.in_norm = 0
        """How many batch norms are being run that fold into a synapse."""
        self.doors: list[bool] = []
        """Whether the input was clean, of each module being run that was judged at its door."""
        self.currents = _Tensors()
        """What came out of synapses, moved and added at most: into it a batch norm folds."""
        # Held, so that no other tensor takes the place of a buffer that is replaced.
        self._held = weights
        self._weights = {_place(tensor) for tensor in self._held}
        self._derived = _Tensors()
        self._seen: list[_Seen] = []
        self._checked = 0
        self._synapses = _NONE
        """Order of the first operation with weights, and of the last with weights or a product."""
        self._fed: dict[str, bool] = {}
        """Module whose weights met something -> whether anything was not 0."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.is_inference_mode_enabled():  # the model's own: see `audit`
            with self:
                taken_apart = func.decompose(*args, **(kwargs or {}))
            if taken_apart is not NotImplemented:
                return taken_apart
        name = func.overloadpacket.__name__.strip("_")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # A neuron may normalise the current that it is given, by the statistics that a norm keeps.
        norms = "batch_norm" in name and isinstance(args[3], Tensor) and args[0] in self.currents
        folds = (self.in_neuron and norms) or (self.in_norm and self._is_affine(name, args, given))
        of_neuron = self.in_neuron and torch.Tag.pointwise in func.tags
        if not (folds or of_neuron):
            self._judge(name, args, kwargs or {}, given)
        signals = [tensor for tensor in given if not self.is_weight(tensor)]
        result = func(*args, **(kwargs or {}))
        if signals:
            self._forget_written(func, args, kwargs or {})
        elif given or name in _CONSTANTS:
            self._derived.add(result)
        if name in _SYNAPSES or (
            (name in _MOVES or name in _ADDITIONS)
            and signals
            and all(tensor in self.currents for tensor in signals)
        ):
            self.currents.add(result)
        return result

    def _forget_written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What a signal was written into is no weight any more."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for written in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name)):
                if isinstance(written, Tensor):
                    self._weights.discard(_place(written))
                    self._derived.forget_storage(_place(written))
                    self.currents.forget_storage(_place(written))

    def report(self, allowed: Mapping[tuple[str, str], str] | None) -> AuditReport:
        merged: dict[tuple[str, str, str], list[_Seen]] = {}
        for seen in self._seen:
            reason = "" if allowed is None else allowed.get((seen.module, seen.operation), "")
            if seen.operation == "average" and seen.order > self._synapses[-1]:
                reason = _LAST
            is_product = seen.operation == "product"
            if allowed is None and seen.order == self._synapses[0] and not is_product:
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
            synapses=tuple(self._fed),
            silent=tuple(name for name, is_fed in self._fed.items() if not is_fed),
        )

    def _judge(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]
    ) -> None:
        if all(map(self.is_weight, given)):
            return
        factor = kwargs.get("alpha", 1)
        if name in _SYNAPSES:
            operands = [args[i] for i in _SYNAPSES[name]]
            has_weights = any(map(self.is_weight, operands))
            if kwargs.get("beta", 1) not in (-1, 0, 1) and not self.is_weight(args[0]):
                self._note("product", f"a term is multiplied by {kwargs['beta']:.4g}")
            if factor not in (-1, 0, 1):
                self._note("product", f"a term is multiplied by {factor:.4g}")
            kind = "convolution" if name == "convolution" else "linear"
            if has_weights and self.doors:
                if self.doors[-1]:  # what came in was clean; what was made of it may not be
                    self._check_operands(kind, operands)
                return
            self.judge_synapse(kind if has_weights else "product", operands)
            return
        if name in _PRODUCTS:
            self._check_operands("product", [args[i] for i in _PRODUCTS[name]])
        elif factor not in (-1, 0, 1):
            self._note("product", f"a term is multiplied by {factor:.4g}")
        elif name in _AVERAGES:
            self._note("average", "numbers are averaged, and what comes out is no spike")
        elif kwargs.get("reduce") == "multiply":
            self._note("product", "numbers are multiplied where they meet")
        elif name in _MAXIMA:
            # A maximum with a constant clamps.
            if not any(map(self.is_weight, given)) and (strange := _strange(args[0])):
                self._note("maximum", f"it compares {strange}")
        elif name not in _HARMLESS:
            operation = "batch_norm" if "batch_norm" in name else name
            self._note(operation, "a function of real numbers")
        else:
            return
        self._checked += 1

    def judge_synapse(self, kind: str, operands: list[Any]) -> bool:
        """Judge what meets weights, or what meets what; return whether all is 0 or 1."""
        first, _ = self._synapses
        if first is None and kind != "product":
            first = self._checked
        self._synapses = (first, self._checked)
        if kind != "product":
            fed = self._fed.setdefault(self.path[-1], False)
            signals = [t for t in operands if isinstance(t, Tensor) and not self.is_weight(t)]
            self._fed[self.path[-1]] = fed or any(bool(t.to_dense().any()) for t in signals)
        is_clean = self._check_operands(kind, operands)
        self._checked += 1
        return is_clean

    def _check_operands(self, kind: str, operands: list[Any]) -> bool:
        tensors = [t for t in operands if isinstance(t, Tensor) and not self.is_weight(t)]
        for operand in tensors:
            if strange := _strange(operand):
                self._note(kind, f"an operand holds {strange}")
                return False
        return True

    def _is_affine(self, name: str, args: tuple[Any, ...], given: list[Tensor]) -> bool:
        """Return whether it scales and shifts one signal by weights, as a batch norm does."""
        if "batch_norm" in name:
            return True
        divides_by_signal = name == "div" and not self.is_weight(args[1])
        signals = sum(not self.is_weight(tensor) for tensor in given)
        return name in _AFFINE and signals == 1 and not divides_by_signal

    def _note(self, operation: str, what: str) -> None:
        self._seen.append(_Seen(self._checked, self.path[-1], operation, what))

    def is_weight(self, tensor: Any) -> bool:
        """Return whether a tensor is a weight, made of weights alone, or no tensor."""
        if not isinstance(tensor, Tensor):
            return True
        return _place(tensor) in self._weights or tensor in self._derived


@contextmanager
def _entering(
    model: nn.Module, watch: _Watch, neurons: tuple[type[nn.Module], ...]
) -> Iterator[None]:
    """Tell `watch` which module runs."""
    stops = []

    def listen(name: str, module: nn.Module) -> None:
        is_neuron = isinstance(module, neurons)
        has_weights = isinstance(module, (*_CONVOLUTIONS, *_LINEARS))
        kind = "linear" if isinstance(module, _LINEARS) else "convolution"
        entered: list[tuple[bool, bool]] = []

        def enter(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = [leaf for leaf in tree_leaves((inputs, named)) if isinstance(leaf, Tensor)]
            watch.path.append(name)
            is_judged = has_weights and bool(given)
            folds = _keeps_statistics(module) and bool(given) and given[0] in watch.currents
            if is_judged:
                watch.doors.append(watch.judge_synapse(kind, given[:1]))
            entered.append((is_judged, folds))
            watch.in_neuron += is_neuron
            watch.in_norm += folds

        def leave(_module: nn.Module, _inputs: object, output: object) -> None:
            is_judged, folds = entered.pop()
            watch.path.pop()
            watch.in_neuron -= is_neuron
            watch.in_norm -= folds
            if is_judged:
                watch.doors.pop()
            if has_weights or folds:
                watch.currents.add(output)

        stops.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        stops.append(module.register_forward_hook(leave, always_call=True))

    try:
        for name, module in model.named_modules():
            try:
                listen(name, module)
            except RuntimeError as error:
                raise ConfigError(
                    f"{name or 'the model'} is scripted; each module must be one that can be "
                    "listened to: audit it as it was before torch.jit.script"
                ) from error
        yield
    finally:
        for stop in stops:
            stop.remove()


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _place(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:
        return id(tensor)  # it has more than one place
    return tensor.untyped_storage().data_ptr()


def _strange(operand: Tensor) -> str:
    """Say what is neither 0 nor 1 among some numbers; nothing where all are."""
    if operand.dtype == torch.bool:
        return ""
    operand = operand.to_dense()
    strange = operand[(operand != 0) & (operand != 1)]
    if not strange.numel():
        return ""
    return f"numbers other than 0 and 1, such as {strange.flatten()[0].item():.4g}"
