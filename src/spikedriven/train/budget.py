"""Energy while learning: the synaptic additions of a forward pass, with a gradient.

What is penalised is the additions of every layer, each spike weighted by its fan-out there:

    share = (sum over layers and spikes of fan-out) / (the same if every neuron fired).

One budget holds for their sum. A spike is pushed as hard as it costs, wherever it is, and learning
decides which layers fall silent; a budget for each layer would fix that beforehand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spikedriven.energy.counts import sight
from spikedriven.energy.shape import windows
from spikedriven.models.sdt import Attention, SpikeDrivenTransformer
from spikedriven.nn.synapse import ConvNorm

# Below this share nothing is to be gained, and its logarithm has no end.
SILENCE = 1e-8


class Share:
    """Additions that occur, over those that would if every neuron fired."""

    def __init__(self) -> None:
        self._executed: list[Tensor] = []
        self._dense = 0

    def add(self, executed: Float[Tensor, ""], dense: int) -> None:
        """Take in one layer."""
        self._executed.append(executed)
        self._dense += dense

    @property
    def value(self) -> Float[Tensor, ""]:
        """The share, in [0, 1], with a gradient to every spike."""
        return torch.stack(self._executed).sum() / self._dense


@contextmanager
def executed_share(model: SpikeDrivenTransformer, part: str = "all") -> Iterator[Share]:
    """Add up the synaptic additions of the forward pass made inside the block, differentiably.

    Each spike weighs what it drives: its fan-out in the layer that it enters, less at a border. So
    a spike that enters the wide layer of an MLP costs four times one that enters the projection.
    The gradient reaches the neurons through their surrogate.

    Args:
        model: The model.
        part: `all` layers that spikes enter, or `attention`: query, key and value.

    Yields:
        The share; its value is there when the pass is over.

    Cost: one sum over each layer's input, and its gradient.
    """
    share = Share()

    def convolve(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, ConvNorm)
        kernel, outputs = layer.conv.kernel_size[0], layer.conv.out_channels
        T, B, C, H, W = inputs[0].shape
        seen = inputs[0].sum(dim=(0, 1, 2))
        rows, columns = sight(H, kernel, seen), sight(W, kernel, seen)
        executed = torch.einsum("hw,h,w->", seen, rows, columns) * outputs
        share.add(executed, T * B * C * windows(H, kernel) * windows(W, kernel) * outputs)

    def classify(outputs: int, _layer: nn.Module, inputs: tuple[Tensor]) -> None:
        share.add(inputs[0].sum() * outputs, inputs[0].numel() * outputs)

    stops = []
    for name, module in model.named_modules():
        into_attention = isinstance(module, Attention)
        if part == "attention" and into_attention:
            for layer in (module.query, module.key, module.value):
                stops.append(layer.register_forward_pre_hook(convolve))
        elif part == "all" and isinstance(module, ConvNorm) and name != "stem.image":
            stops.append(module.register_forward_pre_hook(convolve))
    if part == "all":
        head = partial(classify, model.head.out_features)
        stops.append(model.head.register_forward_pre_hook(head))
    try:
        yield share
    finally:
        for stop in stops:
            stop.remove()


def over_budget(share: Float[Tensor, ""], budget: float) -> Float[Tensor, ""]:
    """Return ln(share / budget) where the share is above the budget, else 0.

    A logarithm, so that ten times too much pulls as hard at 0.5 as at 0.005.
    """
    return torch.log(share.clamp_min(SILENCE) / budget).relu()
