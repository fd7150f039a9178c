"""Synapses as layers: a convolution with its batch norm, alone or with the neurons it drives."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from spikedriven.core.backend import choose
from spikedriven.core.lif import norm_add_lif
from spikedriven.core.synapse import spike_conv2d
from spikedriven.nn.neuron import LIF, SyncedNorm, observed
from spikedriven.nn.probe import is_watched


class SpikeConv2d(nn.Conv2d):
    """A convolution whose input is spikes, remembered as such for the backward pass.

    Its stride is 1, and it has neither dilation nor groups.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: Side of the square kernel, k.
        padding: Zeros around the image, in pixels.
        bias: Whether each output has one.
    """

    backend = "auto"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=bias)

    def forward(self, s: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """Add up the weights of the inputs that fired."""
        return spike_conv2d(s, self.weight, self.bias, int(self.padding[0]), self.backend)


class ConvNorm(nn.Module):
    """Convolution and batch norm over [T, B, C, H, W]: spikes in, current out.

    Args:
        conv: Its convolution; a plain `nn.Conv2d` where the input is not spikes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)
        self.backend = "auto"

    def raw(self, s: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B D H W"]:
        """Return the current before normalisation."""
        current: Tensor = self.conv(s.flatten(0, 1))
        return current.unflatten(0, s.shape[:2])

    def forward(self, s: Float[Tensor, "T B C H W"]) -> Float[Tensor, "T B D H W"]:
        """Return the normalised current; its statistics pool time, batch and space."""
        current = self.raw(s).flatten(0, 1)
        # Triton's kernels, but not norms over all processes, take half precision as it is.
        if isinstance(self.norm, SyncedNorm) or choose(current, len(s), self.backend) != "triton":
            current = current.to(self.norm.weight.dtype)
        normed: Tensor = self.norm(current)
        return normed.unflatten(0, s.shape[:2])


class ConvNormLIF(ConvNorm):
    """Convolution, batch norm and the neurons behind them; the last two in one pass over memory.

    Args:
        conv: As in `ConvNorm`.
        lif: The neurons.
    """

    def __init__(self, conv: nn.Conv2d, lif: LIF) -> None:
        super().__init__(conv)
        self.lif = lif

    def forward(
        self, s: Float[Tensor, "S B C H W"], num_steps: int | None = None
    ) -> Float[Tensor, "T B D H W"]:
        """Return spikes; S = 1 with `num_steps` = T stands for T equal inputs."""
        spikes: Tensor = self.lif(self.raw(s), norm=self.norm, num_steps=num_steps)
        return spikes


def add_and_fire(
    u: Float[Tensor, "T B D H W"],
    layer: ConvNorm,
    s: Float[Tensor, "T B C H W"],
    reader: nn.Module | None,
) -> tuple[Float[Tensor, "T B D H W"], Any]:
    """Add the current of a layer to the membrane stream, and let the neurons that read it fire.

    On a GPU norm, addition and neurons are one walk over memory, unless someone watches the layer
    or its norm, whose results do not exist there, or of the reader what enters it, or gradients.
    Whoever watches the reader's spikes sees them either way.

    Args:
        u: The stream so far.
        layer: Whose current is added.
        s: Spikes that enter the layer.
        reader: The neurons: the first ones of the next layer. None where the stream ends.

    Returns:
        The stream after the addition, and the spikes of the reader, of the same shape, or None.
    """
    if isinstance(reader, LIF) and _may_be_one(layer, s, reader):
        norm, rate = observed(layer.norm), reader.decay
        raw, backend = layer.raw(s), layer.backend
        u, fired = norm_add_lif(raw, norm, u, rate, reader.v_threshold, backend=backend)
        spikes: Tensor = reader(u, fired=fired)
        return u, spikes
    u = u + layer(s)
    return u, None if reader is None else reader(u)


def _may_be_one(layer: ConvNorm, s: Tensor, reader: LIF) -> bool:
    """Whether nothing but the package's own equations lies between a layer and its reader."""
    return (
        _is_own(layer, ConvNorm)
        and _is_own(layer.norm, nn.BatchNorm2d)
        and _is_own(reader, LIF)
        and not (is_watched(layer) or is_watched(layer.norm))
        # Its spikes exist before it is called: such a hook would be passed by.
        and not (reader._forward_pre_hooks or reader._backward_hooks or reader._backward_pre_hooks)
        and choose(s, len(s), layer.backend) == "triton"
        and choose(s, len(s), reader.backend) == "triton"
    )


def _is_own(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what `kind` does."""
    return type(module).forward is kind.forward and "forward" not in vars(module)


def sync_norms(model: nn.Module) -> None:
    """Let every batch norm behind a synapse take its statistics from all processes together."""
    for module in model.modules():
        if isinstance(module, ConvNorm):
            own, module.norm = module.norm, SyncedNorm(module.conv.out_channels)
            module.norm.load_state_dict(own.state_dict())


def pointwise(in_channels: int, out_channels: int, *, bias: bool) -> SpikeConv2d:
    """Return a 1x1 convolution of spikes: the same linear map at every token."""
    return SpikeConv2d(in_channels, out_channels, 1, bias=bias)
