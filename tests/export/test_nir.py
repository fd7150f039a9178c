"""A NIR graph, read back and run by NIR's definitions, fires every spike of the model."""

from graphlib import TopologicalSorter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.helpers.dyadic import bytes_over_256, dyadic
from tests.helpers.lively import lively

import spikedriven as sd
from spikedriven.errors import ConfigError
from spikedriven.export.nir import save_nir, to_nir

nir = pytest.importorskip("nir")

# Of weights and biases, rounded once: 2**-24, for each of at most 144 of them.
FLOAT32_ROUNDING = 2**-24 * 144

CONFIGS = {
    "image": sd.SDTConfig(2, 16, 3, num_steps=4, stem_pool="0110", num_heads=2),
    "frames": sd.SDTConfig(
        1, 16, 5, in_channels=2, num_steps=3, stem_pool="1000", num_heads=2, neuron="plif"
    ),
}


def some(kind: str, batch: int = 3, seed: int = 0) -> torch.Tensor:
    config = CONFIGS[kind]
    frames = (config.num_steps,) if kind == "frames" else ()
    return bytes_over_256(batch, *frames, config.in_channels, 16, 16, seed=seed)


def run(graph, x: torch.Tensor, num_steps: int) -> dict[str, torch.Tensor]:
    """Run a graph in double precision by the equations of NIR, dt = 1; every node's output [T, …].

    Args:
        graph: The graph.
        x: Images [B, C, H, W], shown at each step, or frames [B, T, C, H, W].
        num_steps: T.
    """
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    order = list(TopologicalSorter(sources).static_order())
    v: dict[str, torch.Tensor] = {}
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in order}

    def real(array) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array)).double()

    def fire(name: str, node, current: torch.Tensor) -> torch.Tensor:
        u = v.get(name, torch.zeros_like(current))
        u = u + (real(node.v_leak) - u + real(node.r) * current) / real(node.tau)
        z = (u > real(node.v_threshold)).double()
        v[name] = torch.where(z > 0, real(node.v_reset), u)
        return z

    def pair(value) -> list[int]:
        return [int(n) for n in np.broadcast_to(value, 2)]

    for t in range(num_steps):
        now: dict[str, torch.Tensor] = {}
        for name in order:
            node = graph.nodes[name]
            given = sum(now[source] for source in sources[name])
            match type(node).__name__:
                case "Input":
                    given = (x[:, t] if x.ndim == 5 else x).double()
                case "Conv2d":
                    given = F.conv2d(
                        given, real(node.weight), real(node.bias), pair(node.stride),
                        pair(node.padding),
                    )  # fmt: skip
                case "LIF":
                    given = fire(name, node, given)
                case "Threshold":
                    given = (given > real(node.threshold)).double()
                case "SumPool2d" | "AvgPool2d":
                    size, stride, pad = map(pair, (node.kernel_size, node.stride, node.padding))
                    padded = F.pad(given, [pad[1], pad[1], pad[0], pad[0]])
                    share = size[0] * size[1] if type(node).__name__ == "SumPool2d" else 1
                    given = F.avg_pool2d(padded, size, stride) * share
                    given = given.round(decimals=9)  # a mean times its size is a whole number again
                case "Flatten":
                    given = given.flatten(1)
                case "Affine":
                    given = F.linear(given, real(node.weight), real(node.bias))
                case kind:
                    assert kind == "Output"
            now[name] = given
            outputs[name].append(given)
    return {name: torch.stack(values) for name, values in outputs.items()}


@pytest.mark.parametrize("kind", CONFIGS)
@torch.inference_mode()
def test_every_spike_and_logit_is_the_models(kind, tmp_path):
    x = some(kind)
    model = dyadic(CONFIGS[kind], x)
    save_nir(model, tmp_path / "model.nir", 16)
    found = run(nir.read(tmp_path / "model.nir"), x, CONFIGS[kind].num_steps)
    with sd.record_spikes(model) as spikes:
        steps = model.forward_steps(x)
    for name, wanted in spikes.items():
        fired = found[name].bool()
        if wanted.ndim == 3:  # one neuron for all tokens: in the graph, the same at each
            wanted = wanted[..., None, None].expand_as(fired)
        assert torch.equal(fired, wanted), name
    assert torch.equal(found["output"].float(), steps)
    assert len(steps.unique()) > 3


@torch.inference_mode()
def test_batch_norms_fold_into_weights_whatever_their_numbers():
    """A current differs by the rounding of float32 alone."""
    config = sd.SDTConfig(1, 16, 3, num_steps=2, stem_pool="0000", num_heads=2)
    model = lively(config, size=4).double()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-5)  # as small as the epsilon that is added to it
    x = torch.rand(2, 3, 4, 4)
    found = run(to_nir(model, 4), x, config.num_steps)
    layers = {"stem.image": model.stem.image, "stem.position": model.stem.position,
              "blocks.0.mlp.contract": model.blocks[0].mlp.contract}  # fmt: skip
    for name, layer in layers.items():
        node = f"{name}.conv" if f"{name}.conv" in found else name
        source = {"stem.image": "input", "stem.position": "stem.fourth_lif",
                  "blocks.0.mlp.contract": "blocks.0.mlp.expand"}[name]  # fmt: skip
        wanted = layer.norm(layer.raw(found[source].double()).flatten(0, 1))
        largest = wanted.abs().max()
        assert largest > 0
        assert (found[node].flatten(0, 1) - wanted).abs().max() < FLOAT32_ROUNDING * largest


def test_the_graph_names_its_ends_and_holds_no_mystery():
    x = some("image")
    graph = to_nir(dyadic(CONFIGS["image"], x), 16)
    assert graph.input_type["input"].tolist() == [3, 16, 16]
    assert graph.output_type["output"].tolist() == [3]
    reached = {name for edge in graph.edges for name in edge}
    assert reached == set(graph.nodes)


def test_what_nir_cannot_say_is_refused():
    with pytest.raises(ConfigError, match="training mode"):
        to_nir(sd.SpikeDrivenTransformer(CONFIGS["image"]), 16)
    model = sd.SpikeDrivenTransformer(CONFIGS["image"]).eval()
    with pytest.raises(ConfigError, match="multiple of 4"):
        to_nir(model, 18)
    pooled = sd.SDTConfig(1, 16, 3, stem_pool="0011", num_heads=2)
    with pytest.raises(ConfigError, match="maximum of membranes"):
        to_nir(sd.SpikeDrivenTransformer(pooled).eval(), 16)
    dilated = sd.SDTConfig(1, 16, 3, stem_pool="0010", num_heads=2, dvs_dilation=True)
    with pytest.raises(ConfigError, match="dvs_dilation"):
        to_nir(sd.SpikeDrivenTransformer(dilated).eval(), 16)
