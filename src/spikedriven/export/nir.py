"""The network as a graph of the neuromorphic intermediate representation (NIR).

NIR has no mask and no maximum; what spikes need of both is neurons without memory. Two spikes meet
in a `Threshold` at 1.5: AND. A maximum of spikes is a sum and a `Threshold` at 0.5: OR. A sum over
all tokens, at every token, is a `SumPool2d` twice the size of the map. The membrane stream is no
node: whatever was added to it has an edge to each neuron that reads it, and NIR adds up edges.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spikedriven.errors import ConfigError
from spikedriven.models.sdt import Attention, Block, SpikeDrivenTransformer
from spikedriven.nn.neuron import LIF
from spikedriven.nn.synapse import ConvNorm, ConvNormLIF
from spikedriven.records import write_whole

if TYPE_CHECKING:
    import nir

Shape = tuple[int, int, int]
BOTH, ANY = 1.5, 0.5
"""Between one spike and two; between none and one."""


def to_nir(model: SpikeDrivenTransformer, image_size: int) -> "nir.NIRGraph":
    """Return a model as a NIR graph, batch norms folded into weights.

    Time counts in steps: dv/dt is to be integrated by Euler's method with dt = 1, the input to be
    given at every step (a static image again and again), the answer is the mean of the outputs over
    T steps. NIR's neurons fire above their threshold and ours at it, so thresholds are the next
    smaller float32.

    Args:
        model: Model in evaluation mode.
        image_size: H = W, a multiple of the model's stride.

    Returns:
        Graph from `input` [C, H, W] to `output` [K].

    Raises:
        ConfigError: The model is in training mode, `image_size` does not fit it, or it computes
            what NIR cannot say: a maximum of membranes, which is a pool of the stem's last stage,
            or the dilation of event data.
    """
    _check(model, image_size)
    return _Builder(image_size).network(model)


def save_nir(model: SpikeDrivenTransformer, path: str | Path, image_size: int) -> None:
    """Write `to_nir`'s graph into one file, by custom `*.nir`, whole or not at all.

    Raises:
        ConfigError: As in `to_nir`.
        CheckpointError: The file cannot be written.
    """
    import nir

    graph = to_nir(model, image_size)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "graph.nir"
        nir.write(os.fspath(written), graph)
        write_whole(Path(path), written.read_bytes())


def _check(model: SpikeDrivenTransformer, image_size: int) -> None:
    config = model.config
    if model.training:
        raise ConfigError(
            "the model is in training mode; NIR takes fixed weights: call .eval() first"
        )
    if image_size < 1 or image_size % config.stride:
        raise ConfigError(
            f"image_size is {image_size}; it must be a multiple of {config.stride}, the pixels of "
            "a token: choose another"
        )
    if config.stem_pool[-1] == "1":
        raise ConfigError(
            f"stem_pool is {config.stem_pool!r}, whose last stage takes a maximum of membranes; "
            "NIR has no such node, so it must end in 0: train with another stem_pool, or export "
            "ONNX"
        )
    if config.dvs_dilation:
        raise ConfigError(
            "dvs_dilation is set, which pools across tokens and channels; NIR has no such node: "
            "train without it, or export ONNX"
        )


class _Builder:
    """Collects nodes and edges; every method adds some and returns the name of the last."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: Any, *sources: str) -> str:
        """Add a node that is given the sum of its sources."""
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def convolve(self, name: str, layer: ConvNorm, source: str) -> str:
        import nir

        weight, bias = _folded(layer)
        reach = weight.shape[-1] // 2
        side = (self.side, self.side)
        node = nir.Conv2d(side, weight, 1, reach, 1, 1, bias)
        return self.add(name, node, source)

    def fire(self, name: str, lif: LIF, channels: int, side: int, *sources: str) -> str:
        import nir

        shape = (channels, side, side)
        below = np.nextafter(np.float32(lif.v_threshold), np.float32(0))
        node = nir.LIF(
            tau=_full(shape, 1 / float(lif.decay)),
            r=_full(shape, 1),
            v_leak=_full(shape, 0),
            v_threshold=_full(shape, below),
            v_reset=_full(shape, 0),
        )
        return self.add(name, node, *sources)

    def fire_on(self, name: str, layer: ConvNormLIF, source: str) -> str:
        """Convolve, then fire."""
        current = self.convolve(f"{name}.conv", layer, source)
        return self.fire(name, layer.lif, layer.conv.out_channels, self.side, current)

    def above(self, name: str, threshold: float, channels: int, *sources: str) -> str:
        import nir

        shape = (channels, self.side, self.side)
        return self.add(name, nir.Threshold(_full(shape, threshold)), *sources)

    def halve(self, name: str, channels: int, source: str) -> str:
        """Pool spikes: 3x3 at every second pixel."""
        import nir

        three, two, one = (np.array([n, n]) for n in (3, 2, 1))
        pooled = self.add(f"{name}.sum", nir.SumPool2d(three, two, one), source)
        self.side //= 2
        return self.above(name, ANY, channels, pooled)

    def attend(self, name: str, layer: Attention, channels: int, stream: list[str]) -> str:
        import nir

        s = self.fire(f"{name}.fire", layer.fire, channels, self.side, *stream)
        q, k, v = (
            self.fire_on(f"{name}.{part}", getattr(layer, part), s)
            for part in ("query", "key", "value")
        )
        agree = self.above(f"{name}.agree", BOTH, channels, k, v)
        whole = np.array([2 * self.side - 1] * 2)
        everywhere = nir.SumPool2d(whole, np.array([1, 1]), np.array([self.side - 1] * 2))
        counted = self.add(f"{name}.agreement", everywhere, agree)
        gate = self.fire(f"{name}.gate", layer.gate, channels, self.side, counted)
        masked = self.above(f"{name}.masked", BOTH, channels, q, gate)
        return self.convolve(f"{name}.project", layer.project, masked)

    def network(self, model: SpikeDrivenTransformer) -> "nir.NIRGraph":
        import nir

        config = model.config
        D = config.width
        image = np.array([config.in_channels, self.side, self.side])
        s = self.add("input", nir.Input({"input": image}))
        for stage, part in enumerate(("image", "second", "third")):
            layer = getattr(model.stem, part)
            s = self.fire_on(f"stem.{part}", layer, s)
            if config.stem_pool[stage] == "1":
                s = self.halve(f"stem.{part}.pool", layer.conv.out_channels, s)
        fourth = self.convolve("stem.fourth", model.stem.fourth, s)
        s = self.fire("stem.fourth_lif", model.stem.fourth_lif, D, self.side, fourth)
        stream = [fourth, self.convolve("stem.position", model.stem.position, s)]
        for n, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            attention, mlp = block.attention, block.mlp
            stream.append(self.attend(f"blocks.{n}.attention", attention, D, stream))
            s = self.fire(f"blocks.{n}.mlp.fire", mlp.fire, D, self.side, *stream)
            s = self.fire_on(f"blocks.{n}.mlp.expand", mlp.expand, s)
            stream.append(self.convolve(f"blocks.{n}.mlp.contract", mlp.contract, s))
        all_tokens, none = np.array([self.side, self.side]), np.array([0, 0])
        mean = self.add("head_mean", nir.AvgPool2d(all_tokens, all_tokens, none), *stream)
        s = self.fire("head_lif", model.head_lif, D, 1, mean)
        flat = nir.Flatten({"input": np.array([D, 1, 1])}, start_dim=0, end_dim=-1)
        weight, bias = (p.detach().float().cpu().numpy() for p in model.head.parameters())
        s = self.add("head", nir.Affine(weight, bias), self.add("head_flat", flat, s))
        self.add("output", nir.Output({"output": np.array([config.num_classes])}), s)
        return nir.NIRGraph(self.nodes, self.edges)


def _folded(layer: ConvNorm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return weights and bias of a convolution with its batch norm."""
    norm, conv = layer.norm, layer.conv
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias - norm.running_mean
    shift = bias.double() * scale + norm.bias
    weight = conv.weight.double() * scale[:, None, None, None]
    return weight.detach().float().cpu().numpy(), shift.detach().float().cpu().numpy()


def _full(shape: Shape, value: float) -> NDArray[np.float32]:
    return np.full(shape, value, np.float32)
