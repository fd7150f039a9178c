"""What a forward pass computes, counted: whole numbers of things that happened, and nothing else.

The counter listens from outside, layer by layer, at the spikes that really pass; a network does not
know that it is counted, and nothing is kept but the sums. What does not depend on spikes is
arithmetic, and stands in `shape.standing`.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikedriven.energy.shape import Network, network, standing
from spikedriven.errors import ConfigError, DataError, ShapeError
from spikedriven.models.sdt import Block, SpikeDrivenTransformer
from spikedriven.nn.neuron import LIF
from spikedriven.nn.probe import Tap, spike_sources
from spikedriven.nn.synapse import ConvNorm

OPERATIONS = {
    "spikes": "spikes that came in",
    "fired": "spikes of this layer of neurons",
    "additions": "synaptic additions: one for each spike and each synapse that it drives",
    "multiplications": "products of a pixel and a weight",
    "bit_additions": "synaptic additions of the image as eight planes of bits, each seen once",
    "dense": "synaptic operations if every input fired; none for a window's taps off the image",
    "nominal": "the same with those taps, as the literature counts",
    "updates": "updates of neurons: the membrane leaks, takes in its current, meets its threshold",
    "leak_multiplications": "products of a membrane and a learned time constant",
    "agreements": "tokens at which key and value agree: the additions of the attention's sum",
    "ands": "ANDs of spikes in attention",
    "ors": "ORs of spikes: pooling, dilation, and attention's sum, which for its neuron is an OR",
    "comparisons": "comparisons of membranes in pooling",
    "stream_additions": "additions to the membrane stream, and into its mean over tokens",
    "weights_read": "weights fetched: one for each synaptic addition or multiplication",
    "membranes_read": "membranes, or numbers of the stream, read",
    "membranes_written": "membranes, or numbers of the stream, written",
    "spikes_read": "bits read: each layer reads each of its inputs once a step",
    "spikes_written": "bits written",
    "pixels_read": "pixels read",
}
"""Every kind of count and what one of it is."""

# What the first layer does at every time step, not once for a frame.
_OF_NEURONS = (
    "updates", "leak_multiplications", "membranes_read", "membranes_written", "spikes_written",
)  # fmt: skip
# Single precision counts that far one by one.
EXACT = 1 << 24
# Numbers of ones in a byte.
_BITS = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.float64)


@dataclass(slots=True)
class LayerCounts:
    """One layer's counts, by kind and step, over all images."""

    steps: dict[str, list[int]] = field(default_factory=dict)
    """Kind (`OPERATIONS`) -> count at each time step."""

    def __getitem__(self, kind: str) -> int:
        """Return a count, all steps together; 0 for what the layer does not do."""
        return sum(self.steps.get(kind, ()))

    def add(self, kind: str, counts: list[int]) -> None:
        """Add one forward pass's counts, step by step."""
        own = self.steps.setdefault(kind, [])
        own.extend([0] * (len(counts) - len(own)))
        for t, count in enumerate(counts):
            own[t] += count


@dataclass(slots=True)
class Counts:
    """Everything that was counted, over `images` images; averages are these divided by `images`."""

    network: Network | None = None
    """The sizes of what was counted; None before the first image."""
    images: int = 0
    frames: int = 0
    """Frames that the first layer saw: one for a static image, T for a sequence."""
    time_steps: int = 0
    """Time steps, over all images."""
    layers: dict[str, LayerCounts] = field(default_factory=dict)
    """By layer, in the order in which they were first met."""

    def __getitem__(self, layer: str) -> LayerCounts:
        return self.layers[layer]

    def of(self, kind: str) -> dict[str, int]:
        """Return layer -> count of one kind, for the layers that have it."""
        return {name: layer[kind] for name, layer in self.layers.items() if kind in layer.steps}

    @property
    def additions(self) -> dict[str, int]:
        """Layer -> synaptic additions by spikes, exactly."""
        return self.of("additions")

    @property
    def rates(self) -> dict[str, float]:
        """Neurons, and masked queries -> share of sites, steps and images that fired."""
        sites = {} if self.network is None else self.network.sites
        return {
            name: fired / (sites[name] * self.time_steps)
            for name, fired in self.of("fired").items()
        }

    def add(self, other: "Counts") -> None:
        """Take in what was counted elsewhere: on other images, by another process.

        Raises:
            ConfigError: It was another network, or images of another size.
        """
        if other.network is None:
            return
        if self.network is not None and self.network != other.network:
            raise ConfigError(
                "the counts are of different networks or sizes of image; counts that are added "
                "must be of one: keep them apart"
            )
        self.network = other.network
        self.images += other.images
        self.frames += other.frames
        self.time_steps += other.time_steps
        for name, layer in other.layers.items():
            own = self.layers.setdefault(name, LayerCounts())
            for kind, counts in layer.steps.items():
                own.add(kind, counts)


def count(
    model: nn.Module,
    x: Tensor,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Counts:
    """Count what a model computes for a batch.

    Args:
        model: A `SpikeDrivenTransformer`, in evaluation mode for figures that do not depend on the
            batch.
        x: As for the model: images [B, C, H, W] or frames [B, T, C, H, W].
        mean: With `std`, as `sd.compile` takes them: the pixels are bytes, x = (byte / 255 - mean)
            / std, whose bits are counted too (`bit_additions`). Without, they are not.
        std: See `mean`.

    Returns:
        Exact counts by layer and time step.

    Raises:
        ConfigError: The model is of another kind, or only one of `mean` and `std` is given.
        DataError: The batch is empty.
        ShapeError: The input does not fit the model, or its pixels are no bytes.

    Example:
        >>> from spikedriven import create_model
        >>> counts = count(create_model("sdt_tiny").eval(), torch.zeros(2, 1, 16, 16))
        >>> counts.images, counts["stem.image"]["multiplications"]
        (2, 67712)
    """
    with counting(model, mean=mean, std=std) as counts, torch.no_grad():
        model(x)
    return counts


@contextmanager
def counting(
    model: nn.Module,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Iterator[Counts]:
    """Count every forward pass made inside the block, in constant memory.

    Args:
        model: As in `count`.
        mean: As in `count`.
        std: As in `count`.

    Yields:
        The counts so far, exact after each pass.

    Raises:
        ConfigError: As in `count`.
    """
    if not isinstance(model, SpikeDrivenTransformer):
        raise ConfigError(
            f"the model is a {type(model).__name__}; counts are taken of SpikeDrivenTransformer: "
            "build it with create_model or load_official"
        )
    if (mean is None) != (std is None):
        raise ConfigError(
            f"mean is {mean} and std is {std}; both must be given to read pixels as bytes: "
            "give both, or neither"
        )
    counter = _Counter(model, None if mean is None or std is None else (mean, std))
    try:
        yield counter.counts
    finally:
        counter.stop()


class _Counter:
    """Listens at the layers of one model."""

    def __init__(
        self, model: SpikeDrivenTransformer, bytes_as: tuple[tuple[float, ...], ...] | None
    ) -> None:
        self.config = model.config
        self.bytes_as = bytes_as
        self.counts = Counts()
        self._measured: dict[int, tuple[weakref.ref[Tensor], _Seen]] = {}
        self._stops: list[Any] = [model.stem.register_forward_pre_hook(self._begin)]
        for name, module in model.named_modules():
            if isinstance(module, ConvNorm) and name != "stem.image":
                self._listen(module, self._convolution, name)
        for name, module in spike_sources(model).items():
            if isinstance(module, LIF | Tap):
                self._stops.append(module.register_forward_hook(partial(self._fired, name)))
        for b, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            self._listen(block.attention.gate, self._agreement, f"blocks.{b}.attention")
        self._listen(model.head, self._linear, "head")

    def stop(self) -> None:
        for handle in self._stops:
            handle.remove()

    def _listen(self, module: nn.Module, hear: Any, name: str) -> None:
        self._stops.append(module.register_forward_pre_hook(partial(hear, name)))

    def _add(self, layer: str, **counts: list[int]) -> None:
        own = self.counts.layers.setdefault(layer, LayerCounts())
        for kind, steps in counts.items():
            own.add(kind, steps)

    # -------------------------------------------------------------- what is heard

    def _begin(self, _stem: nn.Module, inputs: tuple[Tensor, int]) -> None:
        x_SBCHW, num_steps = inputs
        S, B, _, H, W = x_SBCHW.shape
        if B == 0:
            raise DataError(
                "the batch is empty; there must be at least one image to be counted: "
                "drop empty batches"
            )
        net = network(self.config, H, W)
        self.counts.add(Counts(network=net, images=B, frames=S * B, time_steps=num_steps * B))
        for name, kinds in standing(net).items():
            for kind, number in kinds.items():
                of_frames = name == "stem.image" and kind not in _OF_NEURONS
                self._add(name, **{kind: [B * number] * (S if of_frames else num_steps)})
        if self.bytes_as is not None:
            ones = _BITS[_as_bytes(x_SBCHW, *self.bytes_as).long()].sum(dim=(1, 2))
            self._add("stem.image", bit_additions=_driven(ones, 3, net["stem.image"].outputs))

    def _convolution(self, name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, ConvNorm)
        seen = self._seen(inputs[0])
        kernel, outputs = layer.conv.kernel_size[0], layer.conv.out_channels
        if kernel == 1:
            additions = [n * outputs for n in seen.spikes]
        else:
            additions = _driven(seen.per_pixel, kernel, outputs)
        self._add(name, spikes=seen.spikes, additions=additions, weights_read=additions)

    def _linear(self, name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(layer, nn.Linear)
        spikes = self._seen(inputs[0]).spikes
        additions = [n * layer.out_features for n in spikes]
        self._add(name, spikes=spikes, additions=additions, weights_read=additions)

    def _fired(self, name: str, _layer: nn.Module, _inputs: Any, s: Tensor) -> None:
        self._add(name, fired=self._seen(s).spikes)

    def _agreement(self, name: str, _gate: nn.Module, inputs: tuple[Tensor]) -> None:
        self._add(name, agreements=_whole(inputs[0].detach().double()))

    # -------------------------------------------------------------- what is measured

    def _seen(self, s: Tensor) -> "_Seen":
        """Count spikes [T, B, C, H, W] or [T, B, C].

        A tensor that several layers read is measured once, and forgotten when it dies, before its
        number can be another's.
        """
        key = id(s)
        known = self._measured.get(key)
        if known is None:
            forget = partial(self._measured.pop, key, None)
            known = weakref.ref(s, lambda _: forget()), _measure(s.detach())
            self._measured[key] = known
        return known[1]


@dataclass(frozen=True, slots=True)
class _Seen:
    per_pixel: Tensor
    """Spikes over images and channels: [T, H, W], or [T]; whole numbers."""
    spikes: list[int]
    """Spikes at each step."""


def _measure(s: Tensor) -> _Seen:
    """Sum up; over channels and images in single precision while that is exact, then in double."""
    wide = torch.promote_types(s.dtype, torch.float32)
    if s.shape[1] * s.shape[2] < EXACT:
        per_pixel = s.sum(dim=(1, 2), dtype=wide).double()
    else:
        per_pixel = s.sum(dim=2, dtype=wide).sum(dim=1, dtype=torch.float64)
    return _Seen(per_pixel, _whole(per_pixel))


def _driven(seen_THW: Tensor, kernel: int, outputs: int) -> list[int]:
    """Return the synapses that spikes drive, by step: fewer from a pixel at the border."""
    _, H, W = seen_THW.shape
    rows, columns = sight(H, kernel, seen_THW), sight(W, kernel, seen_THW)
    return [n * outputs for n in _whole(seen_THW * (rows[:, None] * columns))]


def sight(side: int, kernel: int, like: Tensor) -> Tensor:
    """Return, for each pixel of a line, in how many windows of a kernel it lies: [side].

    Args:
        side: Pixels of the line.
        kernel: Odd side of the windows, one around each pixel.
        like: A tensor of the wanted type and device.
    """
    place = torch.arange(side, dtype=like.dtype, device=like.device)
    reach = kernel // 2
    return (place + reach).clamp(max=side - 1) - (place - reach).clamp(min=0) + 1


def _whole(values: Tensor) -> list[int]:
    """Sum whole numbers [T, ...] over all axes but time."""
    values = values.reshape(len(values), -1).sum(dim=1)
    return [int(value) for value in values.tolist()]


def _as_bytes(x_SBCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    channels = x_SBCHW.shape[2]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(
            f"mean is {mean} and std is {std}; each must have one number for each of {channels} "
            "channels, std above 0: pass the data's own"
        )
    shape = (channels, 1, 1)
    centre = torch.tensor(mean, dtype=torch.float64).view(shape)
    spread = torch.tensor(std, dtype=torch.float64).view(shape)
    levels = ((x_SBCHW.detach().cpu().double() * spread + centre) * 255).round()
    if float(levels.min()) < 0 or float(levels.max()) > 255:
        raise ShapeError(
            f"the input read back as bytes goes from {levels.min():.0f} to {levels.max():.0f}; "
            f"with mean {mean} and std {std} it must lie in 0 to 255: normalise the images as you "
            "say, or count without mean and std"
        )
    return levels
