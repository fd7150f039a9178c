"""The Spike-driven Transformer, all of it in this file.

Yao et al., "Spike-driven Transformer", NeurIPS 2023 (arXiv 2307.01694), as the released code
computes it: `tests/models/test_official.py` holds every spike and every gradient against it.

Shapes: T time steps, B images, C channels, H x W pixels or tokens (N = H W), K classes. What
travels between blocks is membrane potential (u); what travels inside them is spikes (s, q, k, v).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from spikedriven.core.attention import (
    GATE_THRESHOLD,
    dilate_tokens,
    mask,
    spike_driven_attention,
)
from spikedriven.core.synapse import spike_pool
from spikedriven.errors import ConfigError, ShapeError, check_types
from spikedriven.nn.neuron import NEURONS, SyncedNorm
from spikedriven.nn.probe import Dilation, Tap
from spikedriven.nn.synapse import ConvNorm, ConvNormLIF, SpikeConv2d, add_and_fire, pointwise

STEM_STAGES = 4
MOST = 2**20
"""Of anything that a config counts: beyond it, a number is taken for a slip."""


@dataclass(frozen=True, slots=True)
class SDTConfig:
    """Everything that fixes the shape of a Spike-driven Transformer."""

    depth: int
    """Encoder blocks; the paper's L."""
    width: int
    """Channels of the membrane stream, a multiple of 8; the paper's D."""
    num_classes: int
    """Classes, K."""
    in_channels: int = 3
    """Channels of the image or event frame."""
    num_steps: int = 4
    """Time steps T for a static image; an input [B, T, C, H, W] brings its own."""
    mlp_ratio: float = 4.0
    """Hidden channels of the MLP over `width`."""
    num_heads: int = 8
    """Attention heads; must divide `width`. They change nothing (a head's sum is per channel)
    except under `dvs_dilation`, whose window does not cross a head's border."""
    stem_pool: str = "1111"
    """Which of the four stem stages halve the image; the released code's `pooling_stat`."""
    neuron: str = "lif"
    """`lif`, or `plif` with a learned time constant per layer."""
    dvs_dilation: bool = False
    """Dilate keys, values and their products 3x3, as released for CIFAR10-DVS (`Erode` there)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("depth", "width", "num_classes", "in_channels", "num_steps", "num_heads"):
            if (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1: give a whole number")
            if value > MOST:
                raise ConfigError(f"{name} is {value}; it must be at most {MOST}: lower it")
        if self.width % 8:
            raise ConfigError(
                f"width is {self.width}; the stem starts with width / 8 channels: "
                "choose a multiple of 8"
            )
        if self.width % self.num_heads:
            raise ConfigError(
                f"num_heads is {self.num_heads}; it must divide width = {self.width}: "
                "choose a divisor"
            )
        if not 1 <= self.width * self.mlp_ratio <= MOST:
            cure = "4 is usual" if self.width * 4 <= MOST else "lower width"
            raise ConfigError(
                f"mlp_ratio is {self.mlp_ratio}; width * mlp_ratio must lie in 1 to {MOST}: {cure}"
            )
        if len(self.stem_pool) != STEM_STAGES or set(self.stem_pool) - {"0", "1"}:
            raise ConfigError(
                f"stem_pool is {self.stem_pool!r}; it must be four characters of 0 and 1, one for "
                "each stage of the stem: use '1111' for ImageNet, '0011' for CIFAR"
            )
        if self.neuron not in NEURONS:
            raise ConfigError(
                f"neuron is {self.neuron!r}; it must be one of {', '.join(NEURONS)}: choose one"
            )

    @property
    def stride(self) -> int:
        """Pixels per token along each side; H and W must be multiples of it."""
        return 2 ** self.stem_pool.count("1")

    @property
    def hidden(self) -> int:
        """Hidden channels of the MLP."""
        return int(self.width * self.mlp_ratio)


class Stem(nn.Module):
    """Image to membranes of tokens: four 3x3 convolutions and a fifth as position embedding.

    The paper's spiking patch splitting, eq. 4-7. The first convolution meets real pixels; it is
    the network's only synapse that multiplies, and a static image passes it once, not T times.
    """

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        new_lif = NEURONS[config.neuron]
        D = config.width
        self.backend = "auto"
        self.pools = [flag == "1" for flag in config.stem_pool]
        image = nn.Conv2d(config.in_channels, D // 8, 3, padding=1, bias=False)
        self.image = ConvNormLIF(image, new_lif())
        self.second = ConvNormLIF(_conv3x3(D // 8, D // 4), new_lif())
        self.third = ConvNormLIF(_conv3x3(D // 4, D // 2), new_lif())
        self.fourth = ConvNorm(_conv3x3(D // 2, D))
        self.fourth_lif = new_lif()
        self.position = ConvNorm(_conv3x3(D, D))

    def forward(
        self, x_SBCHW: Float[Tensor, "S B c h w"], num_steps: int, reader: nn.Module
    ) -> tuple[Float[Tensor, "T B C H W"], Float[Tensor, "T B C H W"]]:
        """Return the membrane stream that enters the first block, and its reader's spikes."""
        s = self._pooled(0, self.image(x_SBCHW, num_steps=num_steps))
        s = self._pooled(1, self.second(s))
        s = self._pooled(2, self.third(s))
        u = self.fourth(s)
        if self.pools[3]:  # the only pool of membranes: a real maximum, not an OR
            u = F.max_pool2d(u.flatten(0, 1), 3, stride=2, padding=1).unflatten(0, u.shape[:2])
        return add_and_fire(u, self.position, self.fourth_lif(u), reader)

    def _pooled(self, stage: int, s: Tensor) -> Tensor:
        if not self.pools[stage]:
            return s
        return spike_pool(s.flatten(0, 1), self.backend).unflatten(0, s.shape[:2])


class Attention(nn.Module):
    """Spike-driven self-attention: `core.attention`, with its synapses and neurons.

    Its first neurons, `fire`, read the membrane stream as soon as that is written: before it.
    """

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        new_lif = NEURONS[config.neuron]
        D = config.width
        self.fire = new_lif()
        self.query = ConvNormLIF(pointwise(D, D, bias=False), new_lif())
        self.key = ConvNormLIF(pointwise(D, D, bias=False), new_lif())
        self.value = ConvNormLIF(pointwise(D, D, bias=False), new_lif())
        self.gate = new_lif(v_threshold=GATE_THRESHOLD)
        self.masked = Tap()
        self.backend = "auto"
        self.project = ConvNorm(pointwise(D, D, bias=True))
        self.dilation_heads = config.num_heads if config.dvs_dilation else None
        if config.dvs_dilation:
            self.key_dilation, self.value_dilation = Dilation(), Dilation()

    def forward(
        self, u: Float[Tensor, "T B C H W"], s: Float[Tensor, "T B C H W"], reader: nn.Module
    ) -> tuple[Float[Tensor, "T B C H W"], Float[Tensor, "T B C H W"]]:
        """Add to the stream `u`, read by `fire` as `s`; return it, and its next reader's spikes."""
        q, k, v = self.query(s), self.key(s), self.value(s)
        if self.dilation_heads is not None:
            chosen = self._dilated_attention(q, k, v, self.dilation_heads)
        else:
            chosen = spike_driven_attention(q, k, v, self.gate, self.backend)
        return add_and_fire(u, self.project, self.masked(chosen), reader)

    def _dilated_attention(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
        kv = self.key_dilation(k) * self.value_dilation(v)
        gate = self.gate(dilate_tokens(kv, num_heads).sum(dim=(-2, -1)))
        return dilate_tokens(mask(q, gate, self.backend), num_heads)


class MLP(nn.Module):
    """Two linear maps of spikes, the same at every token; `fire` as in `Attention`."""

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        new_lif = NEURONS[config.neuron]
        self.fire = new_lif()
        self.expand = ConvNormLIF(pointwise(config.width, config.hidden, bias=True), new_lif())
        self.contract = ConvNorm(pointwise(config.hidden, config.width, bias=True))

    def forward(
        self, u: Float[Tensor, "T B C H W"], s: Float[Tensor, "T B C H W"], reader: nn.Module | None
    ) -> tuple[Float[Tensor, "T B C H W"], Float[Tensor, "T B C H W"] | None]:
        """Add to the stream `u`, read by `fire` as `s`; return it, and its next reader's spikes."""
        return add_and_fire(u, self.contract, self.expand(s), reader)


class Block(nn.Module):
    """Attention, then the MLP, both added to the membrane stream; the paper's eq. 9-11.

    Whoever adds to the stream lets its readers fire at once: so norm, addition and neurons are one.
    """

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self, u: Float[Tensor, "T B C H W"], s: Float[Tensor, "T B C H W"], reader: nn.Module | None
    ) -> tuple[Float[Tensor, "T B C H W"], Float[Tensor, "T B C H W"] | None]:
        """Return the stream after this block, and the spikes of its reader, if it has one."""
        u, s = self.attention(u, s, self.mlp.fire)
        return self.mlp(u, s, reader)


class SpikeDrivenTransformer(nn.Module):
    """Spike-driven Transformer: stem, blocks, and a head that fires once more before it decides.

    It keeps no neuron state between calls, so there is nothing to reset; samples of a batch meet
    only in batch norm's statistics, and only while training.

    Args:
        config: Its shape.

    Raises:
        ConfigError: It is of another type.

    Example:
        >>> model = SpikeDrivenTransformer(SDTConfig(depth=1, width=32, num_classes=10)).eval()
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, config: SDTConfig) -> None:
        if not isinstance(config, SDTConfig):
            raise ConfigError(
                f"the config is of type {type(config).__name__}; it must be SDTConfig: make one, "
                "or take create_model"
            )
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_lif = NEURONS[config.neuron]()
        self.head = nn.Linear(config.width, config.num_classes)
        self.apply(_initialise)
        # One token's channels lie together: what convolutions, batch norm and neurons read best.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Float[Tensor, "B K"]:
        """Classify images or sequences of event frames.

        Args:
            x: Images [B, C, H, W], shown at each of `config.num_steps` steps, or frames
                [B, T, C, H, W], any T; real and finite. H and W must be multiples of
                `config.stride`. Whether pixels are finite is looked at on a CPU alone, and not
                under `torch.compile`: a GPU would have to wait for the answer. Of what
                `spikedriven.data` loads they always are: bytes, over deviations above 0.

        Returns:
            Logits [B, K], averaged over time.

        Raises:
            ShapeError: It is no dense tensor of the weights' dtype (autocast converts it) on their
                device, the rank, the channels, T or the size is wrong, batch norm would take its
                statistics from one value, or (checked for tensors on a CPU) a pixel is not finite.
        """
        return self.forward_steps(x).mean(0)

    def forward_steps(self, x: Tensor) -> Float[Tensor, "T B K"]:
        """Classify after every step: arguments and errors as in `forward`, before its average."""
        _check_input(x, self.config, self.stem.image.conv.weight)
        x_SBCHW = x.unsqueeze(0) if x.ndim == 4 else x.transpose(0, 1)
        num_steps = self.config.num_steps if x.ndim == 4 else x.shape[1]
        self._check_statistics(x, num_steps)
        x_SBCHW = _channels_last(x_SBCHW)
        first, *others = (block.get_submodule("attention.fire") for block in self.blocks)
        u_TBCHW, s_TBCHW = self.stem(x_SBCHW, num_steps, first)
        for block, reader in zip(self.blocks, [*others, None], strict=True):
            u_TBCHW, s_TBCHW = block(u_TBCHW, s_TBCHW, reader)
        # With the channels moved back the gradient, too, lies channels-last, all the way down.
        u_TBNC = u_TBCHW.movedim(2, -1).flatten(2, 3)
        s_TBC = self.head_lif(u_TBNC.mean(dim=2))
        steps: Tensor = self.head(s_TBC)
        return steps

    def _check_statistics(self, x: Tensor, num_steps: int) -> None:
        norm = self.stem.position.norm
        if not norm.training or isinstance(norm, SyncedNorm):
            return
        if num_steps * len(x) * x.shape[-2] * x.shape[-1] == self.config.stride**2:
            raise ShapeError(
                f"the input {tuple(x.shape)} gives batch norm, while training, one value; there "
                "must be several for a variance: give more images, pixels or steps, or call "
                "model.eval()"
            )


def _conv3x3(in_channels: int, out_channels: int) -> SpikeConv2d:
    return SpikeConv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _initialise(module: nn.Module) -> None:
    """Draw weights as released: normal with deviation 0.02 (cut at 2), norms one, biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _channels_last(x_SBCHW: Tensor) -> Tensor:
    folded = x_SBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return folded.unflatten(0, x_SBCHW.shape[:2])


def _is_cast(device: str, *dtypes: torch.dtype) -> bool:
    """Whether autocast brings these dtypes together; other widths it leaves alone."""
    cast = {torch.float32, torch.bfloat16, torch.float16}
    return torch.is_autocast_enabled(device) and cast.issuperset(dtypes)


def _check_input(x: object, config: SDTConfig, weight: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"the input is of type {type(x).__name__}; it must be a tensor [B, C, H, W] or "
            "[B, T, C, H, W]: convert it with torch.as_tensor"
        )
    if x.is_nested or x.layout != torch.strided:  # a nested tensor may have no shape to show
        kind = "nested" if x.is_nested else x.layout
        cure = "to_padded_tensor(0)" if x.is_nested else "to_dense()"
        raise ShapeError(f"the input is {kind}; it must be dense: convert it with x.{cure}")
    shape = tuple(x.shape)
    if x.ndim not in (4, 5) or not x.is_floating_point():
        raise ShapeError(
            f"the input is {x.dtype} {shape}; it must be real [B, C, H, W] or [B, T, C, H, W]: "
            "add the missing axes or convert it"
        )
    dtype, device = weight.dtype, weight.device
    if x.dtype != dtype and not _is_cast(x.device.type, x.dtype, dtype):
        raise ShapeError(
            f"the input is {x.dtype}; this model computes in {dtype}: convert it with x.to({dtype})"
        )
    if x.device != device:
        # Of a tensor on meta there are no values to move.
        empty = "meta" in (x.device.type, device.type)
        cure = "make both on meta for shapes alone, or neither" if empty else "move one of them"
        raise ShapeError(
            f"the input is on {x.device} and the model's weights are on {device}; they must be on "
            f"one device: {cure}"
        )
    *_, channels, height, width = shape
    if channels != config.in_channels:
        raise ShapeError(
            f"the input {shape} has {channels} channels; this model was built for "
            f"{config.in_channels}: convert the images or build it with in_channels={channels}"
        )
    if 0 in shape[1:]:
        raise ShapeError(
            f"the input {shape} has an empty axis; T, C, H and W must be at least 1: "
            "drop empty samples"
        )
    if height % config.stride or width % config.stride:
        raise ShapeError(
            f"the image is {height} x {width}; with stem_pool={config.stem_pool!r} both sides must "
            f"be multiples of {config.stride}: resize or crop it"
        )
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not x.isfinite().all():
        raise ShapeError(
            f"the input {shape} holds NaN or infinite pixels; every pixel must be finite: "
            "check how the images are decoded and normalised"
        )
