"""From floats to whole numbers: nothing overflows, nothing but rounding is lost, nonsense refused.

The worst that can happen to a sum is that exactly its positive, or exactly its negative weights
are driven; those patterns are made here, for every layer and every output channel.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.engine.ops.test_synapse import assert_fires, assert_streams
from tests.helpers.lively import lively, some_images
from torch import nn

import spikedriven as sd
from spikedriven.engine.ops.image.reference import image_current
from spikedriven.engine.ops.neuron.reference import fire
from spikedriven.engine.ops.synapse.reference import add_rows, fire_current, stream_current
from spikedriven.engine.plan import FRACTION, AttendStep, FireStep, ImageStep, StreamStep
from spikedriven.errors import ConfigError
from spikedriven.models.sdt import Block

CONFIG = sd.SDTConfig(1, 64, 7, stem_pool="0011")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INT16 = 1 << 15
INT32_SAFE = 1 << 30
"""Sums and differences of two numbers below it still fit into 32 bits."""
INT8_MOST = 63
MOST_CLIPPED = 0.25
"""Share of int8 weights that a finer scale may cost their size."""
LEAST_KEPT = 0.55
"""Share of the largest weight that is left when it is clipped for the others' sake."""
ROUNDING = 1e-9
"""Error of float64 where weights are folded in another order."""


def loud(model):
    """Make the weights of every second channel agree in sign and size: the largest sums."""
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            size = module.weight.detach().abs().mean()
            module.weight.data[::2] = size
            module.weight.data[::4] *= -1
    return model


def heavy(model):
    """Make all weights twice as large: not far below the most that int8 can express."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data *= 2
    return model


MODELS = {
    "lively": lambda: lively(CONFIG),
    "loud": lambda: loud(lively(CONFIG)),
    "heavy": lambda: heavy(lively(CONFIG)),
    "plif": lambda: lively(replace(CONFIG, neuron="plif", stem_pool="1111"), size=64),
    "wide": lambda: loud(lively(replace(CONFIG, width=128, mlp_ratio=6.0))),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def layers(program, kind):
    chosen = [step for step in program.steps if isinstance(step, kind)]
    assert chosen
    return chosen


# ------------------------------------------------------------------ the worst case


def extremes(weight):
    """Return spikes [1, 2 D, k, k, C] around a middle pixel: for each output channel its positive
    weights driven, then for each its negative ones."""
    by_channel = np.moveaxis(weight, -1, 0)
    return np.concatenate([by_channel > 0, by_channel < 0])[None]


def middle(x, weight):
    """Return what the extreme patterns made in their own channels: [2 D]."""
    outputs, at = weight.shape[-1], len(weight) // 2
    own = np.arange(2 * outputs)
    return x[0, own, at, at, own % outputs]


@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_the_largest_sums_fit_their_registers(model, weights):
    program = sd.compile(model, weights)
    for step in layers(program, FireStep | StreamStep):
        sums = middle(add_rows(extremes(step.weight), step.weight), step.weight)
        outputs = step.weight.shape[-1]
        assert (sums[:outputs] >= 0).all()
        assert (sums[outputs:] <= 0).all()
        assert np.abs(sums).max() < (INT16 if weights == "int8" else INT32_SAFE), step.name
        assert np.abs(step.weight.astype(np.int64)).max() < (64 if weights == "int8" else 16384)


@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_the_largest_currents_fit_their_registers(model, weights):
    most = 0
    for step in layers(sd.compile(model, weights), FireStep | StreamStep):
        spikes = extremes(step.weight)
        if isinstance(step, FireStep):
            current = middle(fire_current(spikes, step), step.weight)
            assert np.abs(current).max() < INT32_SAFE, step.name
            continue
        before_shift = middle(add_rows(spikes, step.weight), step.weight) * np.tile(step.gain, 2)
        before_shift += np.tile(step.bias, 2)
        assert np.abs(before_shift).max() < 2 * INT32_SAFE - 1, step.name
        most += np.abs(middle(stream_current(spikes, step), step.weight)).max()
    assert most < INT32_SAFE  # the stream, if all layers do their worst at once


def test_the_largest_sums_come_near_the_end_of_their_registers():
    sums = [
        np.abs(middle(add_rows(extremes(step.weight), step.weight), step.weight)).max()
        for step in layers(sd.compile(MODELS["wide"](), "int8"), FireStep | StreamStep)
    ]
    assert max(sums) > 0.97 * INT16  # else the tests above hold of any program


@pytest.mark.parametrize("weights", ["int16", "int8"])
@pytest.mark.parametrize("name", ["loud", "heavy"])
def test_the_kernels_survive_the_worst_case(name, weights):
    for step in layers(sd.compile(MODELS[name](), weights), FireStep | StreamStep):
        chosen = extremes(step.weight)[:, ::16]
        if isinstance(step, FireStep):
            at_rest = np.zeros((*chosen.shape[1:4], step.weight.shape[-1]), np.int64)
            assert_fires(chosen, step, at_rest)
        else:
            assert_streams(chosen, replace(step, neuron=None, pool=False))


def test_the_image_layers_sums_fit_their_registers(model):
    (step,) = layers(sd.compile(model, mean=MEAN, std=STD), ImageStep)
    weight = step.weight.astype(np.int64)
    for chosen in (weight > 0, weight < 0):
        sums = np.where(chosen, weight, 0).sum(axis=(0, 1, 2))
        assert np.abs(sums).max() < INT16
        assert (np.abs(255 * sums) + np.abs(step.bias).max(axis=0)).max() < INT32_SAFE


# ------------------------------------------------------------------ batch norms, folded


def folded(layer):
    """Ask torch, in float64 and by impulses, for every weight and bias of a convolution and norm.

    Returns:
        [k, k, C, D] and [D].
    """
    layer = copy.deepcopy(layer).double()
    inputs, kernel = layer.conv.in_channels, layer.conv.kernel_size[0]

    def answer(x):
        return layer.norm(layer.conv(x))[:, :, kernel // 2, kernel // 2].detach()

    impulses = torch.eye(inputs * kernel * kernel).double().reshape(-1, inputs, kernel, kernel)
    bias = answer(torch.zeros(1, inputs, kernel, kernel).double())[0]
    weight = (answer(impulses) - bias).reshape(inputs, kernel, kernel, -1)
    return weight.permute(1, 2, 0, 3).numpy(), bias.numpy()


def units(step, layer):
    """Return what a unit of the weights and of the bias is worth, and how exactly that is known."""
    if isinstance(step, StreamStep):
        unit = np.full(len(step.gain), 2.0 ** -(FRACTION + step.down))
        return step.gain * unit, unit, np.full(len(unit), ROUNDING)
    unit = layer.lif.v_threshold / step.neuron.theta
    return unit * 2.0**step.up, unit, 0.5 / step.neuron.theta  # thresholds are rounded, too


def own_bias(step):
    """Return a step's bias without what rounds its shift."""
    return step.bias - (1 << step.down >> 1 if isinstance(step, StreamStep) else 0)


@pytest.mark.parametrize("weights", ["int16", "int8"])
@pytest.mark.parametrize("name", ["lively", "plif"])
def test_weights_are_the_float_layers_up_to_half_a_unit(name, weights):
    model = MODELS[name]()
    for step in layers(sd.compile(model, weights), FireStep | StreamStep):
        layer = model.get_submodule(step.name)
        weight, bias = folded(layer)
        unit, bias_unit, doubt = units(step, layer)
        half = unit * (0.5 + np.abs(step.weight) * doubt) + ROUNDING
        error = np.abs(step.weight * unit - weight)
        if weights == "int8":  # the largest may be clipped: what they stand for is larger
            clipped = np.abs(step.weight) == INT8_MOST
            assert clipped.mean() < MOST_CLIPPED, step.name
            beyond = np.abs(weight) >= np.abs(step.weight * unit) - half
            assert (beyond & (np.sign(weight) == np.sign(step.weight)))[clipped].all(), step.name
            error = np.where(clipped, 0, error)
        assert (error <= half).all(), step.name
        if weights == "int8":  # whose bias makes up for what was rounded, see below
            continue
        error = np.abs(own_bias(step) * bias_unit - bias)
        assert (error <= bias_unit * (0.5 + np.abs(step.bias) * doubt) + ROUNDING).all(), step.name


def test_rounding_to_seven_bits_leaves_the_mean_current_where_it_was():
    # The rates are those that were seen; the compiler has batch norm's memory of them alone.
    model, rates = MODELS["lively"](), {}
    names = [step.name for step in layers(sd.compile(model, "int8"), FireStep | StreamStep)]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: rates.update({name: inputs[0].mean((0, 1, 3, 4))})
        )
    with torch.no_grad():
        model.train()(torch.rand(16, 3, 32, 32))
    for step in layers(sd.compile(model.eval(), "int8"), FireStep | StreamStep):
        layer, rate = model.get_submodule(step.name), rates[step.name].double().numpy()
        weight, bias = folded(layer)
        unit, bias_unit, _ = units(step, layer)
        rounded = rate @ (step.weight * unit - weight).sum((0, 1))
        left = rounded + own_bias(step) * bias_unit - bias
        kernel, _, inputs, outputs = step.weight.shape
        # Fewer outputs than inputs, and windows beyond the image's border, leave rates in doubt.
        known = kernel == 1 and outputs >= inputs
        doubt = 0.1 if known else 0.5
        assert np.linalg.norm(left) < doubt * np.linalg.norm(rounded), step.name


def test_a_batch_norm_that_remembers_nothing_corrects_nothing():
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    for step in layers(sd.compile(model, "int8"), FireStep | StreamStep):
        assert not own_bias(step).any(), step.name


@pytest.mark.parametrize("name", ["blocks.0.attention.query", "blocks.0.mlp.contract"])
def test_one_channel_of_large_weights_leaves_the_others_fine(name):
    model = lively(CONFIG)
    layer = model.get_submodule(name)
    layer.norm.weight.data[3] *= 100
    (step,) = [
        step for step in layers(sd.compile(model), FireStep | StreamStep) if step.name == name
    ]
    weight, _ = folded(layer)
    largest = np.abs(weight).max(axis=(0, 1, 2))
    error = np.abs(step.weight * units(step, layer)[0] - weight).max(axis=(0, 1, 2))
    # 14-bit weights of a single scale would be wrong by half of largest[3] / 2**14.
    assert (error < largest * 2.0**-12).all()
    assert largest[3] * 2.0**-15 > np.delete(largest, 3).max() * 2.0**-12


@pytest.mark.parametrize(("mean", "std"), [(None, None), (MEAN, STD)], ids=["plain", "normalised"])
def test_the_image_layer_is_normalisation_convolution_and_norm(mean, std):
    model = MODELS["lively"]()
    (step,) = layers(sd.compile(model, mean=mean, std=std), ImageStep)
    layer = copy.deepcopy(model.stem.image).double()
    x = some_images(3, 6, 9, 3)
    got = image_current(x[None], step)[0] / step.neuron.theta * layer.lif.v_threshold
    real = (x / 255 - np.array(mean or 0)) / np.array(std or 1)
    with torch.no_grad():
        wanted = layer.norm(layer.conv(torch.from_numpy(real).permute(0, 3, 1, 2)))
    unit = layer.lif.v_threshold / step.neuron.theta
    # A weight is rounded, then once more towards zero where all taps together exceed 16 bits.
    taps = 9 * 3
    lost = unit * (255 * taps * 2 + 1) + np.abs(got) * 0.5 / step.neuron.theta
    assert (np.abs(got - wanted.permute(0, 2, 3, 1).numpy()) <= lost).all()
    assert (lost < 0.01 * np.abs(got).max()).all()  # else the bound would allow anything


def test_readouts_weights_are_the_heads_up_to_half_a_unit():
    model = MODELS["lively"]()
    readout = sd.compile(model).steps[-1]
    for got, wanted in ((readout.weight.T, model.head.weight), (readout.bias, model.head.bias)):
        error = np.abs(got * readout.scale - wanted.detach().double().numpy())
        assert error.max() <= readout.scale / 2
    assert np.abs(readout.weight).max() > 1 << 13  # fine units: fifteen bits are used


# ------------------------------------------------------------------ time constants and gates


def test_a_time_constant_becomes_binary_digits():
    model = MODELS["plif"]()
    for step in layers(sd.compile(model), FireStep):
        share = sum(2.0**-places for places in step.neuron.leak)
        decay = model.get_submodule(step.name).lif.decay.item()
        assert share == pytest.approx(decay, abs=2**-13)
        assert list(step.neuron.leak) == sorted(set(step.neuron.leak))


@pytest.mark.parametrize(("w", "remembers"), [(-0.01, True), (0.0, False), (2.0, False)])
def test_a_gate_has_neurons_only_where_one_agreement_does_not_open_it(w, remembers):
    model = MODELS["plif"]()
    model.blocks[0].attention.gate.w.data.fill_(w)
    (step,) = layers(sd.compile(model), AttendStep)
    assert (step.gate is not None) == remembers


def test_a_time_constant_too_long_for_twelve_places_is_refused():
    model = MODELS["plif"]()
    model.blocks[0].mlp.fire.w.data.fill_(-7.0)
    with pytest.raises(ConfigError, match=r"blocks.0.mlp.fire has 1/tau = 0.00091"):
        sd.compile(model)


# ------------------------------------------------------------------ refusals


def refused(match, model, *arguments, **settings):
    with pytest.raises(ConfigError, match=match) as raised:
        sd.compile(model, *arguments, **settings)
    assert "\n" not in str(raised.value)


def test_a_model_in_training_mode_is_refused():
    model = sd.SpikeDrivenTransformer(CONFIG)
    refused("training mode", model)
    model.eval().blocks[0].mlp.contract.norm.train()
    refused("training mode", model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["head.bias", "stem.image.norm.running_var"])
def test_numbers_that_are_none_are_refused_by_name(name, value):
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    model.state_dict()[name][3] = value
    refused(f"{name} holds NaN or infinite", model)


def test_another_kind_of_model_is_refused():
    refused("the model is a Linear; the engine compiles", torch.nn.Linear(2, 2).eval())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5,)}, "mean is .* one finite number for each of 3 channels"),
        ({"std": (1.0, 1.0)}, "std is .* one finite number for each of 3 channels"),
        ({"mean": (0.5, np.nan, 0.5)}, "mean is .* one finite number"),
        ({"std": (0.5, np.inf, 0.5)}, "std is .* one finite number"),
        ({"std": (0.5, 0.0, 0.5)}, "std is .* each must be above 0"),
        ({"std": (0.5, -0.1, 0.5)}, "std is .* each must be above 0"),
        ({"num_steps": 0}, "num_steps is 0; it must be a whole number"),
        ({"num_steps": 2.5}, "num_steps is 2.5; it must be a whole number"),
        ({"num_steps": True}, "num_steps is True; it must be a whole number"),
        ({"num_steps": 2**40}, "num_steps is .*; it must be a whole number in 1 to"),
        ({"image_size": 16.0}, "image_size is 16.0; it must be a multiple of 4"),
        ({"image_size": "16"}, "image_size is '16'; it must be a multiple of 4"),
        ({"image_size": 2**40}, "image_size is .*; it must be a multiple of 4"),
        ({"classes": tuple(range(7))}, "classes is .*; it must be a tuple of words"),
        ({"classes": "abcdefg"}, "classes is 'abcdefg'; it must be a tuple of words"),
        ({"mean": 0.5}, "mean is 0.5; it must be one finite number for each of 3 channels"),
        ({"weights": "float"}, "weights is 'float'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_nonsense_is_refused_in_words(settings, message):
    refused(message, sd.SpikeDrivenTransformer(CONFIG).eval(), **settings)


@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_a_bias_that_no_32_bits_hold_is_refused(weights):
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    model.blocks[0].mlp.contract.norm.bias.data[5] = 1e9
    refused("^blocks.0.mlp.contract could exceed 32 bits", model, weights)


def test_weights_whose_sum_no_32_bits_hold_are_refused():
    model = lively(CONFIG)
    model.blocks[0].mlp.contract.norm.weight.data[3] *= 1e5
    model.blocks[0].mlp.contract.norm.running_mean.zero_()  # the bias is small
    refused("^blocks.0.mlp.contract could exceed 32 bits", model, "int16")


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 16, 1, groups=4, bias=False),
        nn.Conv2d(16, 16, 5, padding=2, bias=False),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False),
    ],
)
def test_another_layer_than_the_configs_is_refused_by_its_name(conv):
    model = sd.SpikeDrivenTransformer(CONFIG)
    model.blocks[0].attention.query.conv = conv
    refused(r"^blocks.0.attention.query.conv is Conv2d\(", model.eval())


class Scaled(sd.SpikeDrivenTransformer):
    def forward(self, x):
        return 3 * super().forward(x)


class Reversed(sd.SpikeDrivenTransformer):
    def forward_steps(self, x):
        return super().forward_steps(x).flip(0)


class Named(sd.SpikeDrivenTransformer):
    """Computes what its parent does."""

    def __init__(self, config):
        super().__init__(config)
        self.title = "a name"


@pytest.mark.parametrize(("kind", "method"), [(Scaled, "forward"), (Reversed, "forward_steps")])
def test_a_model_that_computes_something_else_with_the_same_layers_is_refused(kind, method):
    refused(f"^{kind.__name__} has a {method} of its own", kind(CONFIG).eval())


def test_a_subclass_that_computes_the_same_is_compiled():
    torch.manual_seed(0)
    program = sd.compile(Named(CONFIG).eval())
    torch.manual_seed(0)
    assert program == sd.compile(sd.SpikeDrivenTransformer(CONFIG).eval())


def test_a_subclass_of_a_block_is_refused_by_its_name():
    class Skipping(Block):
        def forward(self, u):
            return u

    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    model.blocks[0] = Skipping(CONFIG).eval()
    refused("^blocks.0 is Skipping", model)


@pytest.mark.parametrize("name", ["", "blocks.0", "stem.second.lif"])
def test_a_forward_that_was_put_into_a_layer_is_refused(name):
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    layer = model.get_submodule(name)
    layer.forward = lambda *given: given[0]
    refused(f"^{name or 'SpikeDrivenTransformer'} has a forward of its own", model)


def test_a_part_that_is_something_else_is_refused():
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    model.blocks[0].mlp = nn.Identity()
    refused("^blocks.0.mlp is Identity", model)


def test_a_variance_below_zero_is_refused_by_its_layer():
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    model.blocks[0].attention.key.norm.running_var[0] = -1
    refused("^blocks.0.attention.key has a running variance of -1", model)


@pytest.mark.parametrize("threshold", [np.nan, np.inf, 0.0, -0.5])
@pytest.mark.parametrize(
    "name", ["stem.image.lif", "stem.fourth_lif", "blocks.0.attention.gate", "head_lif"]
)
def test_a_threshold_that_no_neuron_can_have_is_refused(name, threshold):
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    model.get_submodule(name).v_threshold = threshold
    refused(f"^{name} has a threshold of {threshold}; it must be above 0 and finite", model)


def test_a_neuron_that_never_charges_is_refused():
    model = sd.SpikeDrivenTransformer(replace(CONFIG, neuron="plif")).eval()
    model.blocks[0].attention.query.lif.w.data.fill_(-200)
    refused("^blocks.0.attention.query has 1/tau = ", model)


@pytest.mark.parametrize("w", [-1e-2, -2e-4, -1e-6, 0.0, 2e-4])
def test_a_gate_opens_where_the_float_models_does_however_near_tau_is_to_two(w):
    model = sd.SpikeDrivenTransformer(replace(CONFIG, neuron="plif")).eval()
    gate = model.blocks[0].attention.gate
    gate.w.data.fill_(w)
    (step,) = layers(sd.compile(model), AttendStep)
    channels = CONFIG.width
    counts = np.random.default_rng(0).integers(0, 3, (8, 1, channels))
    wanted = gate(torch.from_numpy(counts).float()).detach().numpy().astype(bool)
    if step.gate is None:
        got = counts > 0
    else:
        at_rest = np.zeros((1, channels), np.int64)
        got, _ = fire(counts << FRACTION, at_rest, step.gate)
    assert 0 < wanted.mean() < 1
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_arrays_lie_in_the_order_in_which_kernels_read_them(model, weights):
    for step in sd.compile(model, weights).steps:
        for name, value in vars(step).items():
            assert not isinstance(value, np.ndarray) or value.flags.c_contiguous, (step.name, name)


@pytest.mark.parametrize("factor", [100, 1e5])
def test_int8_weights_beyond_the_largest_gain_are_refused_or_kept(factor):
    model = lively(CONFIG)
    layer = model.blocks[0].mlp.contract
    layer.norm.weight.data[3] *= factor
    try:
        steps = layers(sd.compile(model, "int8"), StreamStep)
    except ConfigError:
        return  # refused: that is well
    (step,) = [step for step in steps if step.name == "blocks.0.mlp.contract"]
    kept = np.abs(step.weight * units(step, layer)[0])[..., 3].max()
    assert kept > LEAST_KEPT * np.abs(folded(layer)[0][..., 3]).max()


@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_layers_that_overflow_only_together_are_refused(weights):
    model = sd.SpikeDrivenTransformer(replace(CONFIG, depth=2)).eval()
    layers = [model.stem.fourth, model.stem.position]
    for block in model.blocks:
        layers += [block.attention.project, block.mlp.contract]
    for layer in layers[:4]:
        layer.norm.bias.data.fill_(50_000.0)  # of 2**18 that the stream holds
    sd.compile(model, weights)
    for layer in layers[4:]:
        layer.norm.bias.data.fill_(50_000.0)
    refused("the stream after blocks.1.mlp.contract could exceed 32 bits", model, weights)


@pytest.mark.parametrize("weights", ["int16", "int8"])
def test_no_threshold_is_rounded_away(weights):
    model = lively(CONFIG)
    model.blocks[0].attention.query.norm.weight.data[3] *= 1e7
    try:
        steps = layers(sd.compile(model, weights), FireStep)
    except ConfigError:
        return  # refused: that is well
    assert min(step.neuron.theta.min() for step in steps) > 0


# ------------------------------------------------------------------ what is asked for is done


def test_settings_reach_the_program():
    model = sd.SpikeDrivenTransformer(CONFIG).eval()
    program = sd.compile(
        model, mean=MEAN, std=STD, num_steps=7, image_size=32, classes=tuple("abcdefg")
    )
    assert (program.input.mean, program.input.std) == (MEAN, STD)
    assert (program.input.num_steps, program.input.size) == (7, 32)
    assert (program.input.channels, program.input.stride) == (3, 4)
    assert program.classes == tuple("abcdefg")
    assert program.num_classes == 7
    assert sd.compile(model).input.num_steps == CONFIG.num_steps


def test_compiling_leaves_the_model_as_it_was():
    model = MODELS["lively"]()
    before = copy.deepcopy(model.state_dict())
    sd.compile(model, "int8", mean=MEAN, std=STD)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
