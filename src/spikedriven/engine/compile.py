"""From a trained model to a program of whole numbers.

Batch norms fold into weights and thresholds, the image's normalisation into the first layer, the
mean over tokens into the last thresholds. Every choice of scale stands here, and so does the proof
that nothing overflows: the worst case of a sum is that exactly its positive, or exactly its
negative weights are driven.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spikedriven.engine.bits import WORD, words_for
from spikedriven.engine.plan import (
    FRACTION,
    ROWS_MOST,
    AttendStep,
    FireStep,
    ImageStep,
    Input,
    Integers,
    Neuron,
    PoolStep,
    Program,
    ReadoutStep,
    Step,
    StreamStep,
)
from spikedriven.errors import ConfigError
from spikedriven.models.sdt import MOST, Block, SpikeDrivenTransformer
from spikedriven.nn.neuron import LIF
from spikedriven.nn.synapse import ConvNorm, ConvNormLIF

Reals = NDArray[np.float64]

ONE = 1 << FRACTION
INT8_MOST = 63
"""Two rows of such weights add up within a byte."""
INT16_MOST = 16383
"""Two rows of such weights add up within 16 bits."""
INT16_SUM = 32767
INT32_SAFE = (1 << 30) - 64
"""Bound of every 32-bit value: sums and differences of two of them still fit, and the rounding of
a leak of many digits."""
GAIN_USUAL = 7 << 7
"""Largest gain of a layer whose weights are not extraordinary."""
INT16_EXTRA = 6
"""Binary places that int16 weights may have beyond the stream's."""
RIDGE = 0.01
"""How much less than a layer's weights its batch norm is trusted where it says little of a rate."""
TINY = 1e-30
LEAK_DIGITS = 12
GATE_DIGITS = 30
"""A gate counts in 64 bits; and one agreement must reach its threshold exactly where it does in the
float model, however little 1/tau lies below one half."""
# Clip the largest weights where that makes the others finer, and the whole layer nearer.
_CLIPS = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6)
# Where rounding up would break the bound of a sum, a coarser scale does not.
_COARSER = (1.1, 1.25)
_GAINS = np.array([m << e for e in range(13) for m in (4, 5, 6, 7)], np.int64)


def compile(  # noqa: A001 - as in torch.compile
    model: nn.Module,
    weights: str = "int16",
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_steps: int | None = None,
    image_size: int | None = None,
    classes: tuple[str, ...] = (),
) -> Program:
    """Compile a trained Spike-driven Transformer into a program that only adds.

    Args:
        model: A `SpikeDrivenTransformer` in evaluation mode.
        weights: `int16`, with up to 18 binary places, which is faithful; or `int8`, which is fast.
        mean: Per channel; the model was trained on (byte / 255 - mean) / std. By default 0. For
            event frames, whose numbers the model takes as they are, pass 0 and 1 / 255.
        std: Per channel; by default 1.
        num_steps: Time steps; by default the model's.
        image_size: Side of the images, if the program shall take no other.
        classes: Names of the classes.

    Returns:
        The program, plain data.

    Raises:
        ConfigError: The model is in training mode, holds NaN, is of another kind, or has a layer
            that no whole numbers of this size can express.

    Source: none; the published code multiplies floats.
    """
    if weights not in ("int16", "int8"):
        raise ConfigError(
            f"weights is {weights!r}; it must be int16 (faithful) or int8 (fast): choose one"
        )
    if not isinstance(model, SpikeDrivenTransformer):
        raise ConfigError(
            f"the model is a {type(model).__name__}; the engine compiles SpikeDrivenTransformer: "
            "build it with create_model or load_official"
        )
    _check(model)
    config = model.config
    steps = config.num_steps if num_steps is None else num_steps
    if not _is_count(steps):
        raise ConfigError(
            f"num_steps is {steps!r}; it must be a whole number in 1 to {MOST}: leave it to the "
            "model"
        )
    channels = config.in_channels
    wanted = Input(
        channels=channels,
        stride=config.stride,
        num_steps=steps,
        size=image_size,
        mean=_per_channel("mean", mean, 0.0, channels),
        std=_per_channel("std", std, 1.0, channels),
    )
    if min(wanted.std) <= 0:
        raise ConfigError(f"std is {wanted.std}; each must be above 0: pass the data's own")
    if image_size is not None and not (_is_count(image_size) and image_size % config.stride == 0):
        raise ConfigError(
            f"image_size is {image_size!r}; it must be a multiple of {config.stride}, the pixels "
            f"of a token, up to {MOST}: leave it out to take any"
        )
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(
            f"classes is {classes!r}; it must be a tuple of words: name them all, or none"
        )
    if classes and len(classes) != config.num_classes:
        raise ConfigError(
            f"{len(classes)} classes are named; the model has {config.num_classes}: name them all, "
            "or none"
        )
    program = Program(
        weights=weights,
        input=wanted,
        steps=tuple(_steps(model, wanted, weights)),
        classes=classes,
    )
    _check_stream(program)
    return program


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST


def _check(model: SpikeDrivenTransformer) -> None:
    _check_layers(model)
    _check_methods(model)
    if any(module.training for module in model.modules()):
        raise ConfigError(
            "the model is in training mode; its batch norms must stand still: call model.eval()"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ConfigError(
                "the model is on meta and has no values; weights must have some to become whole "
                "numbers: give it weights"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError(
                f"{name} holds NaN or infinite values; every weight must be finite: "
                "choose an earlier checkpoint"
            )
    for name, module in model.named_modules():
        if isinstance(module, LIF) and not 0 < module.v_threshold < float("inf"):
            raise ConfigError(
                f"{name} has a threshold of {module.v_threshold}; it must be above 0 and finite, "
                "for a silent neuron stays silent here: train with another, or run the float model"
            )


def _check_layers(model: SpikeDrivenTransformer) -> None:
    """Refuse a model whose layers are others than those of its config: they would be lost."""
    with torch.device("meta"):
        plain = dict(SpikeDrivenTransformer(model.config).named_modules())
    own = dict(model.named_modules())
    for name in sorted((own.keys() | plain.keys()) - {""}):
        found, wanted = own.get(name), plain.get(name)
        if type(found) is not type(wanted) or _in_words(found) != _in_words(wanted):
            raise ConfigError(
                f"{name} is {_in_words(found)}; the engine compiles "
                f"{_in_words(wanted)} there: build the model from its config alone"
            )


def _check_methods(model: SpikeDrivenTransformer) -> None:
    """Refuse a model that computes something else with its layers: it would be lost, too."""
    for name, module in model.named_modules():
        kind = SpikeDrivenTransformer if module is model else type(module)
        for method in ("forward", "forward_steps", "__call__"):
            own = getattr(type(module), method, None)
            if method in vars(module) or own is not getattr(kind, method, None):
                raise ConfigError(
                    f"{name or type(module).__name__} has a {method} of its own; the engine "
                    f"compiles what {kind.__name__} computes: run the float model, or express the "
                    "change in its weights"
                )


def _in_words(module: nn.Module | None) -> str:
    # What must not differ: neurons have constants of their own, norms a momentum.
    if module is None:
        return "nothing"
    kind = type(module).__name__
    if isinstance(module, LIF):
        return kind
    if isinstance(module, nn.BatchNorm2d):
        states = "" if module.affine and module.track_running_stats else ", incomplete"
        return f"{kind}({module.num_features}{states})"
    return f"{kind}({module.extra_repr()})"


def _per_channel(
    name: str, values: tuple[float, ...] | None, default: float, channels: int
) -> tuple[float, ...]:
    if values is None:
        return (default,) * channels
    if np.shape(values) != (channels,) or not np.isfinite(values).all():
        raise ConfigError(
            f"{name} is {values}; it must be one finite number for each of {channels} channels: "
            "pass the data's own"
        )
    return tuple(float(value) for value in values)


# ------------------------------------------------------------------ the plan


def _steps(model: SpikeDrivenTransformer, wanted: Input, weights: str) -> list[Step]:
    stem = model.stem
    steps: list[Step] = [_image(stem.image, wanted)]
    source = "stem.image"
    for pools, name, layer in zip(
        stem.pools, ("stem.second", "stem.third", ""), (stem.second, stem.third, None), strict=False
    ):
        if pools:
            steps.append(PoolStep(name=f"{source}.pool", source=source))
            source = f"{source}.pool"
        if layer is not None:
            steps.append(_fires(name, source, layer, weights))
            source = name
    fires = [f"blocks.{b}.attention.fire" for b in range(len(model.blocks))]
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    neurons = [block.attention.fire for block in blocks]
    steps.append(
        _streams(
            "stem.fourth", source, stem.fourth, weights,
            pool=stem.pools[3], begins=True, neuron=stem.fourth_lif, emits="stem.fourth_lif",
        )
    )  # fmt: skip
    steps.append(
        _streams(
            "stem.position", "stem.fourth_lif", stem.position, weights,
            neuron=neurons[0], emits=fires[0],
        )
    )  # fmt: skip
    for b, block in enumerate(blocks):
        attention, mlp, name = block.attention, block.mlp, f"blocks.{b}"
        for part, synapses in (
            ("query", attention.query), ("key", attention.key), ("value", attention.value)
        ):  # fmt: skip
            steps.append(_fires(f"{name}.attention.{part}", fires[b], synapses, weights))
        steps.append(
            AttendStep(
                name=f"{name}.attention.masked",
                query=f"{name}.attention.query",
                key=f"{name}.attention.key",
                value=f"{name}.attention.value",
                channels=model.config.width,
                gate=_gate(f"{name}.attention.gate", attention.gate, model.config.width),
                dilation_heads=attention.dilation_heads,
            )
        )
        steps.append(
            _streams(
                f"{name}.attention.project", f"{name}.attention.masked", attention.project, weights,
                neuron=mlp.fire, emits=f"{name}.mlp.fire",
            )
        )  # fmt: skip
        steps.append(_fires(f"{name}.mlp.expand", f"{name}.mlp.fire", mlp.expand, weights))
        is_last = b + 1 == len(model.blocks)
        steps.append(
            _streams(
                f"{name}.mlp.contract", f"{name}.mlp.expand", mlp.contract, weights,
                neuron=None if is_last else neurons[b + 1], emits="" if is_last else fires[b + 1],
            )
        )  # fmt: skip
    steps.append(_readout(model))
    return steps


@dataclass(frozen=True)
class _Folded:
    """A convolution with its batch norm inside."""

    weight: Reals
    """[k, k, C, D]."""
    bias: Reals
    """[D]."""


def _fold(name: str, layer: ConvNorm) -> _Folded:
    norm, conv = layer.norm, layer.conv
    rows = words_for(conv.in_channels) * WORD
    if rows > ROWS_MOST:
        raise ConfigError(
            f"{name} has {rows} rows of weights a tap; an event can name {ROWS_MOST}: "
            "choose a smaller width, or run the float model"
        )
    assert norm.running_mean is not None
    assert norm.running_var is not None
    spread = _real(norm.running_var) + norm.eps
    if spread.min() <= 0:
        raise ConfigError(
            f"{name} has a running variance of {spread.min():.3g}; it must be above 0: "
            "choose an earlier checkpoint"
        )
    factor = _real(norm.weight) / np.sqrt(spread)
    weight = np.ascontiguousarray(_real(conv.weight).transpose(2, 3, 1, 0)) * factor
    bias = 0.0 if conv.bias is None else _real(conv.bias)
    return _Folded(weight, (bias - _real(norm.running_mean)) * factor + _real(norm.bias))


def _real(tensor: torch.Tensor) -> Reals:
    return tensor.detach().cpu().double().numpy()


def _image(layer: ConvNormLIF, wanted: Input) -> ImageStep:
    folded = _fold("stem.image", layer)
    mean, std = np.array(wanted.mean), np.array(wanted.std)
    per_byte = folded.weight / (255 * std)[:, None]
    # Nine taps of every channel at once stay within 16 bits, whatever the bits of a plane are.
    worst = _worst(per_byte)
    step = np.maximum(worst / INT16_SUM, 2.0**-22)
    step = np.maximum(step, np.abs(folded.bias) * 2.0**-26)
    weight = _rounded(per_byte / step, INT16_SUM)
    weight = np.trunc(weight * np.minimum(1, INT16_SUM / np.maximum(_worst(weight), 1)))
    shift = -(folded.weight * (mean / std)[:, None]).sum(axis=2)  # [3, 3, D]: of taps on the image
    bias = np.stack([folded.bias + shift[_taps(edge)].sum(axis=0) for edge in range(16)])
    theta = np.rint(layer.lif.v_threshold / step)
    most = 255 * _worst(weight) + np.abs(bias / step).max(axis=0)
    return ImageStep(
        name="stem.image",
        weight=weight.astype(np.int16),
        bias=_int32("stem.image", bias / step),
        neuron=_neuron("stem.image", layer.lif, theta, most.max()),
    )


def _taps(edge: int) -> tuple[list[int], list[int]]:
    rows = [dy for dy in range(3) if not (dy == 0 and edge & 1) and not (dy == 2 and edge & 2)]
    columns = [dx for dx in range(3) if not (dx == 0 and edge & 4) and not (dx == 2 and edge & 8)]
    pairs = [(dy, dx) for dy in rows for dx in columns]
    return [dy for dy, _ in pairs], [dx for _, dx in pairs]


def _fires(name: str, source: str, layer: ConvNormLIF, weights: str) -> FireStep:
    folded = _fold(name, layer)
    threshold = layer.lif.v_threshold
    weight: Integers
    if weights == "int16":
        scale = np.maximum(_largest(folded.weight) / INT16_MOST, 2.0 ** -(FRACTION + INT16_EXTRA))
        most = np.maximum(_worst(folded.weight) + np.abs(folded.bias), threshold) / scale
        up = int(np.clip(np.floor(np.log2(INT32_SAFE / 4 / most.max())), 0, INT16_EXTRA))
        # Where one place is too many already, a channel's weights are made coarser.
        scale = scale * np.maximum(1, most / (INT32_SAFE / 4))
        weight = _rounded(folded.weight / scale, INT16_MOST).astype(np.int16)
    else:
        up = 12
        least = np.maximum(np.abs(folded.bias), threshold) * 2.0 ** (up - 28)
        weight, scale = _int8(folded.weight, least)
        folded = _made_good(folded, layer, weight * scale)
    unit = scale / 2.0**up
    bias = _int32(name, folded.bias / unit)
    theta = np.rint(threshold / unit)
    most = (_worst(weight) * 2.0**up + np.abs(bias)).max()
    return FireStep(
        name=name,
        source=source,
        weight=weight,
        bias=bias,
        up=up,
        neuron=_neuron(name, layer.lif, theta, most),
    )


def _streams(
    name: str,
    source: str,
    layer: ConvNorm,
    weights: str,
    *,
    neuron: LIF | None,
    emits: str,
    pool: bool = False,
    begins: bool = False,
) -> StreamStep:
    folded = _fold(name, layer)
    weight: Integers
    if weights == "int16":
        weight, gain, down = _int16_with_gain(folded)
    else:
        weight, gain, down = _int8_with_gain(name, folded)
        folded = _made_good(folded, layer, weight * (gain * 2.0 ** -(FRACTION + down)))
    bias = _int32(name, folded.bias * 2.0 ** (FRACTION + down))
    half = 1 << down >> 1
    if (_worst(weight) * gain + np.abs(bias)).max() >= INT32_SAFE:
        raise ConfigError(_too_large(name))
    theta = None
    if neuron is not None:
        theta = _neuron(emits, neuron, np.full(len(bias), neuron.v_threshold * ONE), 0.0)
    return StreamStep(
        name=name,
        source=source,
        weight=weight,
        gain=gain.astype(np.int32),
        bias=bias + half,
        down=down,
        pool=pool,
        begins=begins,
        neuron=theta,
        emits=emits,
    )


def _readout(model: SpikeDrivenTransformer) -> ReadoutStep:
    weight, bias = _real(model.head.weight).T, _real(model.head.bias)
    largest = max(float(np.abs(weight).max()), float(np.abs(bias).max()) / 1024, 2.0**-20)
    places = int(np.floor(np.log2(INT16_SUM / largest)))
    theta = np.full(len(weight), model.head_lif.v_threshold * ONE)
    return ReadoutStep(
        name="head_lif",
        neuron=_neuron("head_lif", model.head_lif, theta, 0.0),
        weight=np.ascontiguousarray(np.rint(weight * 2.0**places), np.int32),
        bias=_int32("head", bias * 2.0**places),
        scale=2.0**-places,
    )


# ------------------------------------------------------------------ neurons


def _neuron(name: str, lif: LIF, theta: Reals, largest_current: float) -> Neuron:
    """Return the neurons; the current in front of them is bounded by `largest_current`.

    A membrane lies between its currents, so that the gap to the next is at most twice as large.
    """
    if largest_current >= INT32_SAFE:
        raise ConfigError(_too_large(name))
    # A silent neuron stays silent: no threshold is rounded to 0.
    theta = np.maximum(theta, 1)
    return Neuron(theta=_int32(name, theta), leak=_leak(name, _decay(lif)))


def _decay(lif: LIF) -> float:
    return float(torch.as_tensor(lif.decay).detach())


def _gate(name: str, lif: LIF, channels: int) -> Neuron | None:
    # One agreement is worth 1/tau of a membrane at least 0: from one half on it always fires.
    if _decay(lif) >= lif.v_threshold:
        return None
    theta = _int32(name, np.full(channels, lif.v_threshold * ONE))
    return Neuron(theta=theta, leak=_leak(name, _decay(lif), GATE_DIGITS))


def _leak(name: str, decay: float, places: int = LEAK_DIGITS) -> tuple[int, ...]:
    """Return 1/tau as binary digits, rounded to so many places."""
    share = round(decay * 2**places)
    if share == 0 or abs(share / 2**places - decay) > 0.01 * decay:
        raise ConfigError(
            f"{name} has 1/tau = {decay:.2g}; {places} binary places express no less than "
            f"{50 / 2**places:.2g} well: train with a shorter tau, or run the float model"
        )
    digits = [places - place for place in range(places + 1) if share >> place & 1]
    return tuple(reversed(digits))


# ------------------------------------------------------------------ weights in whole numbers


def _worst(weight: NDArray[np.generic]) -> Reals:
    """Return, per output channel, the largest magnitude that a sum of some weights can have."""
    flat = weight.reshape(-1, weight.shape[-1]).astype(np.float64)
    worst: Reals = np.maximum(
        np.where(flat > 0, flat, 0).sum(axis=0), np.where(flat < 0, -flat, 0).sum(axis=0)
    )
    return worst


def _rounded(x: Reals, most: int) -> Reals:
    return np.clip(np.rint(x), -most, most)


def _largest(weight: Reals) -> Reals:
    """Return the largest magnitude of each output channel."""
    largest: Reals = np.abs(weight).reshape(-1, weight.shape[-1]).max(axis=0)
    return largest


def _int16_with_gain(folded: _Folded) -> tuple[Integers, Integers, int]:
    """Return 14-bit weights on scales gain * 2**-(12 + down), the gains, and down.

    Gains are powers of two. A channel of small weights has up to 18 binary places: a sum of
    thousands of weights adds up thousands of rounding errors, and its unused upper bits are spent
    on that. A channel of large ones has fewer.
    """
    places = np.floor(np.log2(INT16_MOST / np.maximum(_largest(folded.weight), 2.0**-20)))
    places = np.minimum(places, FRACTION + INT16_EXTRA)
    worst = float((_worst(folded.weight) + np.abs(folded.bias)).max())
    room = int(np.floor(np.log2(INT32_SAFE / 8 / max(worst, 1.0)))) - FRACTION
    # A gain is at least 4, and at most 4 << 15.
    down = max(0, min(int(places.max()) - FRACTION + 2, room, int(places.min()) + 5))
    places = np.minimum(places, FRACTION + down - 2)
    gain = 1 << (FRACTION + down - places).astype(np.int64)
    return np.rint(folded.weight * 2.0**places).astype(np.int16), gain, down


def _made_good(folded: _Folded, layer: ConvNorm, rounded: Reals) -> _Folded:
    """Return a layer whose bias makes up for what its rounded weights add to the mean current."""
    shift = _rates(layer) @ (rounded - folded.weight).sum(axis=(0, 1))
    return _Folded(folded.weight, folded.bias - shift)


def _rates(layer: ConvNorm) -> Reals:
    """Return how often each input fires, as far as the batch norm remembers it: [C] in [0, 1].

    The mean current of every output is the sum of its weights times their inputs' rates: as many
    equations as outputs. What they leave open lies near the rate that all inputs have in common.
    """
    conv = layer.conv
    assert layer.norm.running_mean is not None
    weight = _real(conv.weight).sum(axis=(2, 3))
    mean = _real(layer.norm.running_mean) - (0.0 if conv.bias is None else _real(conv.bias))
    together = weight.sum(axis=1)
    common = together @ mean / max(together @ together, TINY)
    unexplained = mean - common * together
    # Of the two ways to write the solution, that with the smaller matrix.
    outputs, inputs = weight.shape
    gram = weight @ weight.T if outputs < inputs else weight.T @ weight
    gram[np.diag_indices_from(gram)] += max(RIDGE * np.trace(gram) / len(gram), TINY)
    if outputs < inputs:
        own = weight.T @ np.linalg.solve(gram, unexplained)
    else:
        own = np.linalg.solve(gram, weight.T @ unexplained)
    rates: Reals = np.clip(common + own, 0, 1)
    return rates


def _int8(weight: Reals, least: Reals) -> tuple[Integers, Reals]:
    """Return 7-bit weights and the scale of each output channel, at least `least`."""
    most = _largest(weight) / INT8_MOST
    best, best_error = np.zeros_like(weight), np.full(len(most), np.inf)
    best_scale = np.ones_like(most)
    for clip in _CLIPS:
        scale = np.maximum(most * clip, least)
        rounded = _rounded(weight / scale, INT8_MOST)
        over = np.maximum(1, _worst(rounded) / INT16_SUM)
        if (over > 1).any():  # a coarser scale, by a little more than what rounding can undo
            scale = scale * np.where(over > 1, over * 1.02, 1)
            rounded = _rounded(weight / scale, INT8_MOST)
        error = ((rounded * scale - weight) ** 2).sum(axis=(0, 1, 2))
        error = np.where(_worst(rounded) > INT16_SUM, np.inf, error)
        better = error < best_error
        best[..., better], best_scale[better] = rounded[..., better], scale[better]
        best_error = np.minimum(best_error, error)
    return best.astype(np.int8), best_scale


def _int8_with_gain(name: str, folded: _Folded) -> tuple[Integers, Integers, int]:
    """Return 7-bit weights on scales gain * 2**-(12 + down), the gains, and down."""
    weight = folded.weight
    magnitude = _largest(weight)
    needed = np.maximum(magnitude / INT8_MOST, _worst(weight) / INT16_SUM)
    largest = max(float(needed.max()), 2.0**-24)
    # Small gains leave room for the sum in 32 bits; the larger ones are for weights of 14 and more.
    down = int(np.floor(np.log2(GAIN_USUAL / (max(_COARSER) * largest * ONE))))
    room = INT32_SAFE / 4 / (max(float(np.abs(folded.bias).max()), 2.0**-12) * ONE)
    down = max(0, min(down, 16, int(np.floor(np.log2(room)))))
    unit = 2.0 ** -(FRACTION + down)
    best, best_error = np.zeros_like(weight), np.full(len(needed), np.inf)
    best_gain = np.full(len(needed), _GAINS[-1])
    for clip in (*_CLIPS, *_COARSER):
        at = np.searchsorted(_GAINS, needed * clip / unit)
        gain = _GAINS[np.minimum(at, len(_GAINS) - 1)]
        scale = gain * unit
        rounded = _rounded(weight / scale, INT8_MOST)
        error = ((rounded * scale - weight) ** 2).sum(axis=(0, 1, 2))
        error = np.where(_worst(rounded) > INT16_SUM, np.inf, error)
        better = error < best_error
        best[..., better], best_gain[better] = rounded[..., better], gain[better]
        best_error = np.minimum(best_error, error)
    if needed.max() > _GAINS[-1] * unit or not np.isfinite(best_error).all():
        raise ConfigError(
            f"{name} has weights up to {magnitude.max():.3g}; int8 expresses at most "
            f"{_GAINS[-1] * unit * INT8_MOST:.3g}: compile it as int16, or look for a batch norm "
            "whose variance has collapsed"
        )
    return best.astype(np.int8), best_gain, down


def _int32(name: str, x: Reals) -> NDArray[np.int32]:
    rounded = np.rint(x)
    if np.abs(rounded).max() >= INT32_SAFE:
        raise ConfigError(_too_large(name))
    return rounded.astype(np.int32)


def _too_large(name: str) -> str:
    return (
        f"{name} could exceed 32 bits in its worst case; its folded weights must be smaller: "
        "look for a batch norm whose variance has collapsed"
    )


def _check_stream(program: Program) -> None:
    """Prove that the membrane stream, and the neurons on it, stay within 32 bits."""
    most = 0.0
    for step in program.steps:
        if not isinstance(step, StreamStep):
            continue
        current = (_worst(step.weight) * step.gain + np.abs(step.bias)) / 2.0**step.down
        most += float(current.max()) + 1
        if most >= INT32_SAFE:
            raise ConfigError(_too_large(f"the stream after {step.name}"))
