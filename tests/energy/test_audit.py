"""The audit on planted violations, each in the smallest module that has it; then on our models."""

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.lively import lively
from torch import nn

import spikedriven as sd
from spikedriven.energy.audit import audit
from spikedriven.errors import ConfigError
from spikedriven.nn.backend import use_backend
from spikedriven.nn.neuron import LIF, PLIF
from spikedriven.nn.synapse import ConvNorm, ConvNormLIF, SpikeConv2d


class Planted(nn.Module):
    """Image, neurons, and a second synapse; what lies between is planted."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ConvNormLIF(nn.Conv2d(3, 8, 3, padding=1), LIF())
        self.other = ConvNormLIF(nn.Conv2d(3, 8, 3, padding=1), LIF())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.fire = LIF()
        self.head = nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.data.fill_(1.0)

    def forward(self, x):
        s = self.between(self.first(x, 4))  # [T, B, C, H, W]
        u = self.second(s.flatten(0, 1)).unflatten(0, s.shape[:2])
        return self.head(self.fire(u + 1).amax(dim=(-2, -1))).mean(0)

    def between(self, s):
        return s


class Clean(Planted):
    def between(self, s):
        return F.max_pool2d(s.flatten(0, 1), 3, 2, 1).unflatten(0, s.shape[:2])


class IntegerSpikes(Planted):
    def between(self, s):
        return s.cumsum(0).clamp(max=2)


class SEWAddition(Planted):
    def forward(self, x):
        a = self.first(x, 4)
        s = a + self.between(a)
        return self.second(s.flatten(0, 1))


class AveragePool(Planted):
    def between(self, s):
        return F.avg_pool2d(s.flatten(0, 1), 2).unflatten(0, s.shape[:2])


class HalvedCurrent(Planted):
    def forward(self, x):
        s = self.first(x, 4)
        u = self.second(s.flatten(0, 1)).unflatten(0, s.shape[:2]) * 0.125
        return self.head(self.fire(u).amax(dim=(-2, -1)))


class Gated(Planted):
    """A learned scale of the membrane, as LayerScale has it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x):
        s = self.first(x, 4)
        return self.second(s.flatten(0, 1)) * self.scale


class Softmax(Planted):
    """Attention of spikes with a softmax."""

    def forward(self, x):
        s = self.first(x, 4).flatten(3)
        return (s @ (s.transpose(-2, -1) @ s).softmax(-1)).mean((0, -1))


class RealQuery(Planted):
    """The query is a membrane."""

    def forward(self, x):
        s = self.first(x, 4)
        q = self.second(s.flatten(0, 1)).unflatten(0, s.shape[:2])
        return q * s


class RealQueryOfMatrices(Planted):
    def forward(self, x):
        s = self.first(x, 4)
        q = self.second(s.flatten(0, 1)).unflatten(0, s.shape[:2])
        return q.flatten(3) @ s.flatten(3).transpose(-2, -1)


class IntegerTimesBinary(Planted):
    """The second product of linear attention: counts meet spikes."""

    def forward(self, x):
        s = self.first(x, 4).flatten(3)
        return s @ (s.transpose(-2, -1) @ s)


class NormInFrontOfSpikes(Planted):
    """A batch norm behind the neurons, which folds into nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        s = self.first(x, 4)
        return self.second(self.norm(s.flatten(0, 1)))


class LayerNormed(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def between(self, s):
        return (self.norm(s.movedim(2, -1)) > 0).movedim(-1, 2).to(s.dtype)


class Activated(Planted):
    def forward(self, x):
        return F.gelu(self.second(self.first(x, 4).flatten(0, 1)))


class StateAsWeight(Planted):
    """A membrane kept in a buffer is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Conv2d(8, 8, 1)
        self.register_buffer("v", torch.zeros(8, 8, 8, 8))

    def forward(self, x):
        self.v.copy_(self.second(self.first(x, 4).flatten(0, 1)))
        return self.third(self.v)


class ScaledState(StateAsWeight):
    def forward(self, x):
        self.v.copy_(self.second(self.first(x, 4).flatten(0, 1)))
        return self.v * 0.9


class WrittenIntoADerivedWeight(Planted):
    def forward(self, x):
        v = self.second.bias * 2
        v[:4].copy_(self.second(self.first(x, 4).flatten(0, 1))[0, :4, 0, 0])
        return v * 0.9


class ReplacedState(StateAsWeight):
    """The buffer's memory may be taken by the membrane that replaces it."""

    def forward(self, x):
        del self.v
        self.v = self.second(self.first(x, 4).flatten(0, 1))
        return self.third(self.v)


class ByKeyword(Planted):
    def forward(self, x):
        return self.second(input=2 * self.first(x, 4).flatten(0, 1))


class UnfoldableNorm(Planted):
    """Behind a synapse, but with the statistics of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.made(8)

    @staticmethod
    def made(channels):
        return nn.BatchNorm2d(channels, track_running_stats=False)

    def forward(self, x):
        return self.norm(self.second(self.first(x, 4).flatten(0, 1)))


class InstanceNorm(UnfoldableNorm):
    made = staticmethod(nn.InstanceNorm2d)


class NormOfTheStream(Planted):
    """It folds into neither of two synapses whose neurons lie in between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        s = self.first(x, 4).flatten(0, 1)
        return self.norm(F.max_pool2d(self.second(s), 2))


class GatingNorm(nn.BatchNorm2d):
    def forward(self, u):
        u = super().forward(u)
        return u * u.sigmoid()


class GatedInsideANorm(Planted):
    """Of a norm that folds, only the scale and the shift do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = GatingNorm(8)

    def forward(self, x):
        return self.norm(self.second(self.first(x, 4).flatten(0, 1)))


class SquaredBehindANorm(UnfoldableNorm):
    @staticmethod
    def made(channels):
        norm = nn.BatchNorm2d(channels)
        norm.register_forward_hook(lambda _norm, _inputs, u: u * u)
        return norm


class ThinkingLIF(LIF):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, i, *rest, **named):
        mixed = self.mix(i.movedim(2, -1)).softmax(-1).movedim(-1, 2)
        return super().forward(mixed, *rest, **named)


class SynapseInsideANeuron(Planted):
    def __init__(self) -> None:
        super().__init__()
        self.fire = ThinkingLIF()


PLANTED = {
    StateAsWeight: {("third", "convolution")},
    ScaledState: {("", "product")},
    WrittenIntoADerivedWeight: {("", "product")},
    ReplacedState: {("third", "convolution")},
    ByKeyword: {("second", "convolution")},
    UnfoldableNorm: {("norm", "batch_norm")},
    InstanceNorm: {("norm", "batch_norm")},
    NormOfTheStream: {("", "maximum"), ("norm", "batch_norm")},
    GatedInsideANorm: {("norm", "sigmoid"), ("norm", "product")},
    SquaredBehindANorm: {("norm", "product")},
    SynapseInsideANeuron: {("fire.mix", "linear"), ("fire", "softmax")},
    IntegerSpikes: {("second", "convolution")},
    SEWAddition: {("second", "convolution")},
    AveragePool: {("", "average"), ("second", "convolution")},
    HalvedCurrent: {("", "product")},
    Gated: {("", "product")},
    Softmax: {("", "softmax"), ("", "product")},
    RealQuery: {("", "product")},
    RealQueryOfMatrices: {("", "product")},
    IntegerTimesBinary: {("", "product")},
    NormInFrontOfSpikes: {("norm", "batch_norm"), ("second", "convolution")},
    LayerNormed: {("norm", "native_layer_norm")},
    Activated: {("", "gelu")},
}


def audited(kind):
    torch.manual_seed(0)
    return audit(kind(), torch.rand(1, 2, 3, 8, 8))


@pytest.mark.parametrize("kind", PLANTED, ids=lambda kind: kind.__name__)
def test_a_planted_violation_is_found_where_it_is(kind):
    report = audited(kind)
    assert not report.ok
    assert {(found.module, found.operation) for found in report.violations} == PLANTED[kind]


SPIKES, FIRST = torch.eye(8), torch.zeros(1, 8, dtype=torch.long)
REAL = {
    "addmm_": lambda u: u.addmm_(u, u),
    "baddbmm_": lambda u: u[None].baddbmm_(u[None], u[None]),
    "addbmm": lambda u: torch.addbmm(u, u[None], u[None]),
    "addcmul_": lambda u: u.addcmul_(u, u),
    "addcdiv": lambda u: torch.addcdiv(u, u, u + 1),
    "add, alpha": lambda u: torch.add(u, u, alpha=0.3),
    "sub, alpha": lambda u: u.sub_(u.clone(), alpha=0.3),
    "addmm, beta": lambda u: torch.addmm(u, (u > 0.5).float(), torch.ones(8, 8), beta=0.3),
    "lerp": lambda u: u.lerp(u + 1, 0.5),
    "baddbmm, alpha": lambda u: torch.baddbmm(u[None], SPIKES[None], SPIKES[None], alpha=0.3),
    "scatter, multiply": lambda u: u.scatter(0, FIRST, 0.5, reduce="multiply"),
    "amax": lambda u: u.amax(0),
    "max": lambda u: u.max(0).values,
    "maximum": lambda u: torch.maximum(u[::2], u[1::2]),
    "prod": lambda u: u.prod(0),
    "cumprod": lambda u: u.cumprod(0),
    "cdist": lambda u: torch.cdist(u, u),
    "fft": lambda u: torch.fft.fft(u).real,
    "bilinear": lambda u: F.bilinear(u, u, torch.ones(2, 8, 8)),
    "einsum": lambda u: torch.einsum("ij,jk->ik", u, u),
    "sigmoid_": torch.sigmoid_,
    "exp_": torch.exp_,
    "rsqrt_": torch.rsqrt_,
    "silu": nn.SiLU(inplace=True),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "mish": F.mish,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "erf": torch.erf,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "exp2": torch.exp2,
    "logsumexp": lambda u: u.logsumexp(0),
    "var": lambda u: u.var(0),
    "vector_norm": torch.linalg.vector_norm,
    "bilinear interpolation": lambda u: F.interpolate(u[None, None], (9, 9), mode="bilinear"),
    "adaptive_avg_pool3d": lambda u: F.adaptive_avg_pool3d(u[None, None], 2),
    "rounding": torch.round,
}  # fmt: skip


class Function(nn.Module):
    """A function of reals between two synapses; the first passes the image through."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.first.weight.data = torch.eye(8)

    def forward(self, x):
        self.function(self.first(x))
        return self.last((x > 0.5).to(x.dtype))


@pytest.mark.parametrize("name", REAL)
def test_whatever_computes_with_reals_is_named(name):
    torch.manual_seed(0)
    (found,) = {f.module for f in audit(Function(REAL[name]), torch.rand(8, 8)).violations}
    assert found in ("", "function")


FREE = {
    "moves": lambda u: torch.cat([u.t().flatten(), u[::2, 1:].reshape(-1).flip(0)]).clone(),
    "comparisons": lambda u: torch.where(u > 0.5, u, u.clamp(0.1, 0.9)).nan_to_num().relu(),
    "maxima of spikes": lambda u: (u > 0.5).float().amax(0).maximum((u[0] > 0.5).float()),
    "a look-up": lambda u: F.embedding((u > 0.5).long(), u),
    "patches": lambda u: F.fold(F.unfold(u[None, None], 2), (8, 8), 2),
    "additions": lambda u: (u + u - u.sum(0)).cumsum(0) - u,
    "logic": lambda u: (u > 0.5) & (u < 0.9) | ~(u > 0.2),
    "a spike's product": lambda u: (u > 0.5).float() * (u > 0.3).float(),
    "constants": lambda _: torch.arange(8.0).mul(0.1).sin(),
}


@pytest.mark.parametrize("name", FREE)
def test_moves_comparisons_and_additions_are_free(name):
    assert audit(Function(FREE[name]), torch.rand(8, 8)).ok


@pytest.mark.parametrize("kind", [RealQuery, Softmax, SEWAddition, UnfoldableNorm, Clean])
def test_inference_mode_hides_nothing(kind):
    outside = audited(kind)
    with torch.inference_mode():
        inside = audited(kind)
    assert inside == outside


@pytest.mark.parametrize("kind", [RealQuery, SEWAddition, Clean])
def test_inference_mode_inside_of_a_model_hides_and_adds_nothing(kind):
    class Deployed(kind):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    assert audited(Deployed).violations == audited(kind).violations


def test_a_norm_that_is_written_out_folds_too():
    class WrittenOut(nn.BatchNorm2d):
        def forward(self, u):
            scale = self.weight / (self.running_var + self.eps).sqrt()
            return (u - self.running_mean[:, None, None]) * scale[:, None, None] / 2

    class Network(GatedInsideANorm):
        def __init__(self) -> None:
            super().__init__()
            self.norm = WrittenOut(8)

    assert audited(Network).ok


def test_what_follows_a_synapse_and_folds_is_free():
    class Folding(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            s = self.first(x, 4).flatten(0, 1)
            u = (self.second(s) + self.second(s)).unflatten(0, (4, 2)).flatten(0, 1)
            return self.norm(u)

    assert audited(Folding).ok


def test_synapses_that_met_only_zeros_are_named():
    torch.manual_seed(0)
    model, x = Clean(), torch.rand(1, 2, 3, 8, 8)
    alive = audit(model, x)
    assert alive.synapses == ("first.conv", "second", "head")
    assert alive.silent == ()
    assert alive.fires
    model.second.weight.data.zero_()
    model.second.bias.data.fill_(-9.0)
    partly = audit(model, x)
    assert partly.silent == ("head",)
    assert partly.fires
    model.first.norm.bias.data.fill_(-9.0)
    dead = audit(model, x)
    assert dead.silent == ("second", "head")
    assert dead.ok
    assert not dead.fires


def test_a_fresh_model_is_found_silent():
    model = sd.create_model("sdt_tiny")
    assert not audit(model, torch.rand(1, 1, 16, 16)).fires


def test_a_clean_network_passes_with_its_first_synapse_named():
    report = audited(Clean)
    assert report.ok
    assert [(e.module, e.operation) for e in report.exceptions] == [
        ("first.conv", "convolution"),
        ("", "average"),
    ]
    assert "meets the image" in report.exceptions[0].reason
    assert "behind the last synapse" in report.exceptions[1].reason


def test_only_the_first_synapse_may_meet_reals():
    class Two(Planted):
        def forward(self, x):
            return self.second((self.first(x, 4) + self.other(x, 4)).clamp(max=1).flatten(0, 1))

    (found,) = audited(Two).violations
    assert (found.module, found.operation) == ("other.conv", "convolution")


def test_a_product_of_two_signals_is_no_first_synapse():
    class Similarity(nn.Module):
        def forward(self, x):
            return x @ x.transpose(-1, -2)

    (found,) = audit(Similarity(), torch.rand(2, 3, 8)).violations
    assert (found.module, found.operation) == ("", "product")


def test_a_weight_made_of_weights_is_no_first_synapse():
    class LowRank(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.rand(5, 2)), nn.Parameter(torch.rand(2, 8))

        def forward(self, x):
            weight = self.a @ self.b
            return F.linear(self.first(x, 4).flatten(1)[:, :8], weight)

    assert audited(LowRank).ok


def test_an_encoder_of_spikes_needs_no_exception():
    class Events(Planted):
        def forward(self, x):
            return super().forward((x > 0.5).to(x.dtype))

    report = audited(Events)
    assert report.ok
    assert [e.operation for e in report.exceptions] == ["average"]


def test_what_the_user_allows_is_an_exception_with_his_reason():
    torch.manual_seed(0)
    report = audit(
        AveragePool(),
        torch.rand(1, 2, 3, 8, 8),
        allowed={
            ("first.conv", "convolution"): "the image",
            ("", "average"): "mine",
            ("second", "convolution"): "mine too",
        },
    )
    assert report.ok
    assert {e.reason for e in report.exceptions} >= {"the image", "mine", "mine too"}


def test_a_neuron_is_what_the_user_declares():
    class Leaky(nn.Module):
        def forward(self, u):
            return (u * 0.5 >= 1).to(u.dtype)

    class Network(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.fire = Leaky()

    torch.manual_seed(0)
    model, x = Network(), torch.rand(1, 2, 3, 8, 8)
    assert [f.module for f in audit(model, x).violations] == ["fire"]
    assert audit(model, x, neurons=(LIF, Leaky)).ok


def test_a_weight_made_of_weights_is_a_weight():
    class Standardised(Planted):
        def forward(self, x):
            s = self.first(x, 4).flatten(0, 1)
            weight = self.second.weight - self.second.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(s, weight * 2, padding=1)

    assert audited(Standardised).ok


def test_torchs_own_attention_is_found_in_its_fused_form_too():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True)
    assert not audit(layer, (torch.rand(2, 4, 8) > 0.5).float()).ok


def test_repetitions_are_one_finding_with_their_number():
    class Loop(Planted):
        def forward(self, x):
            s = self.first(x, 4)
            return torch.stack([self.second(2 + s_t) for s_t in s])

    (found,) = audited(Loop).violations
    assert (found.module, found.times) == ("second", 4)
    assert "such as" in found.what


@pytest.mark.parametrize(
    "config",
    [
        sd.SDTConfig(1, 32, 5, num_heads=4, stem_pool="1111"),
        sd.SDTConfig(2, 32, 5, num_heads=4, stem_pool="0011", neuron="plif"),
        sd.SDTConfig(1, 32, 5, num_heads=4, stem_pool="0000", dvs_dilation=True),
    ],
)
def test_our_model_has_the_three_known_exceptions_and_no_other(config):
    side = 4 * config.stride
    model = lively(config, size=side)
    x = torch.rand(2, 3, side, side)
    report = audit(model.train(), x)
    assert model.training
    assert report.ok
    stem = {("stem", "maximum")} if config.stem_pool[3] == "1" else set()
    expected = {("stem.image.conv", "convolution"), ("", "average")} | stem
    assert {(e.module, e.operation) for e in report.exceptions} == expected
    # Every layer with weights and every meeting of query, key and value was looked at.
    assert report.checked >= 6 + 8 * config.depth


def test_our_definitions_pass_as_our_kernels_do():
    model = lively(sd.SDTConfig(1, 16, 5, stem_pool="0011", num_heads=2), size=8)
    x = torch.rand(2, 3, 8, 8)
    wanted = sd.audit(model, x)
    use_backend(model, "reference")
    found = sd.audit(model, x)
    assert found.ok, found.violations
    assert [one.module for one in found.exceptions] == [one.module for one in wanted.exceptions]


def test_a_neuron_that_normalises_by_its_batch_is_named():
    class OfBatch(LIF):
        def forward(self, i, **_named):
            own = F.batch_norm(i.flatten(0, 1), None, None, training=True)
            return super().forward(own.unflatten(0, i.shape[:2]))

    model = lively(sd.SDTConfig(1, 16, 5, stem_pool="0011", num_heads=2), size=8)
    model.stem.second.lif = OfBatch()
    found = sd.audit(model, torch.rand(2, 3, 8, 8))
    assert [one.module for one in found.violations] == ["stem.second.lif"]


def test_a_violation_in_our_model_is_no_exception():
    model = lively(sd.SDTConfig(1, 32, 5, num_heads=4, stem_pool="0011"))
    block = model.blocks[0]
    block.attention.query.lif.forward = lambda i, **_: i  # a real-valued query
    found = {(f.module, f.operation) for f in audit(model, torch.rand(1, 3, 16, 16)).violations}
    assert found == {
        ("blocks.0.attention", "product"),
        ("blocks.0.attention.project.conv", "convolution"),
    }


def test_an_audit_leaves_nothing_behind():
    model = Clean()
    audit(model, torch.rand(1, 2, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        audit(model, torch.rand(1, 2, 4, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore:.torch.jit.script:")
def test_a_scripted_module_is_refused_in_a_sentence_and_nothing_is_left_behind():
    model = nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Linear(8, 8)))
    with pytest.raises(ConfigError, match=r"1 is scripted.*as it was before torch\.jit\.script"):
        audit(model, torch.rand(1, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(("scale", "ok"), [(1, True), (2, False)])
def test_spikes_in_a_sparse_tensor_are_judged_as_others_are(scale, ok):
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Parameter(torch.rand(8, 5))

        def forward(self, x):
            s = (self.first(x) > 0).float() * scale
            return torch.sparse.mm(s.to_sparse(), self.second)

    torch.manual_seed(0)
    assert audit(Sparse(), torch.rand(4, 8)).ok is ok


def test_our_layers_are_looked_into():
    assert issubclass(PLIF, LIF)
    layer = ConvNorm(SpikeConv2d(3, 4, 1))
    (found,) = audit(layer, torch.rand(2, 1, 3, 4, 4), allowed={}).violations
    assert (found.module, found.operation) == ("conv", "convolution")


class Doubling(nn.Conv2d):
    def forward(self, s):
        return super().forward(s + s)


class Plain(nn.Conv2d):
    def forward(self, s):
        return super().forward(s.contiguous())


@pytest.mark.parametrize(
    ("kind", "between", "times"),
    [
        (Doubling, Clean, 1),
        (Doubling, IntegerSpikes, 1),
        (Plain, Clean, 0),
        (Plain, IntegerSpikes, 1),
    ],
)
def test_what_a_layer_makes_of_clean_spikes_is_judged_once(kind, between, times):
    class Network(between):
        def __init__(self) -> None:
            super().__init__()
            self.second = kind(8, 8, 3, padding=1)

    violations = [found for found in audited(Network).violations if found.module == "second"]
    assert sum(found.times for found in violations) == times


class Remembers(Planted):
    def __init__(self, *, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("trace", torch.zeros(1))

    def between(self, s):
        weighed = s * self.trace
        trace = 0.7 + s.amax(dim=0, keepdim=True)
        if self.way == "replaced":
            self.trace = trace
        elif self.way == "resized":
            self.trace.resize_(trace.shape).copy_(trace)
        else:
            self.trace.data = trace
        return (weighed > 0).float()


@pytest.mark.parametrize("way", ["replaced", "resized", "data"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_buffer_that_holds_a_signal_of_an_earlier_call_is_no_weight(way, calls):
    model, x = Remembers(way=way), torch.rand(1, 2, 3, 8, 8)
    with torch.no_grad():
        for _ in range(calls):
            model(x)
    (found,) = audit(model, x).violations
    assert (found.module, found.operation) == ("", "product")


def test_a_buffer_that_is_made_of_constants_in_the_first_call_is_a_weight():
    class Lazy(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("factor", None)

        def between(self, s):
            if self.factor is None:
                self.factor = torch.full((1,), 0.5) * self.head.bias[0].abs()
            return (s * self.factor > 0).float()

    assert audited(Lazy).ok


def test_a_layer_that_computes_outside_of_torch_is_judged_by_what_comes_in():
    class Outside(nn.Conv2d):
        def forward(self, s):
            return torch.from_numpy(s.numpy().repeat(2, axis=1))

    class Network(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.second = Outside(8, 16, 1)

        def forward(self, x):
            return self.second(2 * self.first(x, 4).flatten(0, 1))

    (found,) = audited(Network).violations
    assert (found.module, found.operation) == ("second", "convolution")
