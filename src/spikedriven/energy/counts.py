"""What a forward pass computes, counted: whole numbers of things that happened, and nothing else.

The counter listens from outside, layer by layer, at the spikes that really pass; a network does not
know that it is counted, and nothing is kept but the sums. What does not depend on spikes is
arithmetic, and stands in `shape.standing`.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikedriven.energy.shape import Network, network, standing
from spikedriven.errors import ConfigError, DataError, ShapeError
from spikedriven.models.sdt import Block, SpikeDrivenTransformer
from spikedriven.nn.neuron import LIF
from spikedriven.nn.probe import Tap, spike_sources
from spikedriven.nn.synapse import ConvNorm, ConvNormLIF

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
# Pixels are bytes if they come back as near to whole numbers: single precision leaves some 1e-4.
BYTE = 1e-3
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
        own = self.steps.get(kind, [])
        self.steps[kind] = [a + b for a, b in zip_longest(own, counts, fillvalue=0)]


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
    passes: dict[tuple[int, int], int] = field(default_factory=dict)
    """(frames, time steps) of an image -> how many images had so many."""
    caused: dict[str, LayerCounts] = field(default_factory=dict)
    """What spikes caused, by layer."""

    @property
    def layers(self) -> dict[str, LayerCounts]:
        """Layer -> all of its counts: what happens in silence too, and what spikes caused."""
        layers: dict[str, LayerCounts] = {}
        if self.network is not None:
            for (frames, steps), images in self.passes.items():
                for name, kinds in standing(self.network).items():
                    own = layers.setdefault(name, LayerCounts())
                    for kind, number in kinds.items():
                        of_frames = name == "stem.image" and kind not in _OF_NEURONS
                        own.add(kind, [images * number] * (frames if of_frames else steps))
        _join(layers, self.caused)
        return layers

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
        for key, images in other.passes.items():
            self.passes[key] = self.passes.get(key, 0) + images
        _join(self.caused, other.caused)

    def gathered(self) -> "Counts":
        """Return what all processes counted together, the same on each; alone, what this one did.

        Every process of `torch.distributed` must call it, also one that had no image to count, and
        count its own part alone: what a `PartSampler` gives out beyond it is another's. A few
        kilobytes are sent, whatever was counted.

        Raises:
            ConfigError: As in `add`.
        """
        together = Counts()
        if not (dist.is_available() and dist.is_initialized()):
            together.add(self)
            return together
        every: list[Counts | None] = [None] * dist.get_world_size()
        dist.all_gather_object(every, self)
        for counts in every:
            assert counts is not None
            together.add(counts)
        return together


def _join(layers: dict[str, LayerCounts], others: dict[str, LayerCounts]) -> None:
    for name, layer in others.items():
        own = layers.setdefault(name, LayerCounts())
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
        ShapeError: The input does not fit the model, its pixels are no bytes, or a sum over tokens
            was rounded in half precision.

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
    """Count every forward pass that is completed inside the block, in constant memory.

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
    if next(model.parameters()).is_meta:
        raise ConfigError(
            "the model is on meta and has no values; its spikes must be counted: give it weights"
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


class _Seen:
    """Whole numbers of a pass, [T, H, W] or [T], still a tensor until the pass is read out."""

    __slots__ = ("per_pixel", "total", "windows")

    def __init__(self, per_pixel: Tensor) -> None:
        self.per_pixel: Tensor = per_pixel
        self.total: list[int] = []
        """Sum over pixels, by step."""
        self.windows: list[int] = []
        """The same, each pixel as often as 3x3 windows see it: less often at a border."""


class _Use(NamedTuple):
    """What follows for a layer from spikes that are seen there."""

    layer: str
    kinds: tuple[str, ...]
    factor: int = 1
    kernel: int = 1
    """Side of the windows in which they are seen: 1 or 3."""


Uses = tuple[_Use, ...]


def _driven(layer: str, outputs: int, kernel: int = 1) -> Uses:
    """Return what follows from spikes that come into a layer of weights."""
    return (
        _Use(layer, ("spikes",)),
        _Use(layer, ("additions", "weights_read"), outputs, kernel),
    )


class _Counter:
    """Listens at the layers of one model: in as few places, and with as little to do, as it can."""

    def __init__(
        self, model: SpikeDrivenTransformer, bytes_as: tuple[tuple[float, ...], ...] | None
    ) -> None:
        self.config = model.config
        self.bytes_as = bytes_as
        self.counts = Counts()
        self._pass: Counts | None = None
        """Begun and not yet completed: one that fails leaves nothing."""
        self._heard: list[tuple[Uses, _Seen]] = []
        self._measured: dict[int, tuple[weakref.ref[Tensor], _Seen]] = {}
        self._stops: list[Any] = [model.stem.register_forward_pre_hook(self._begin)]
        fires = {
            name: (_Use(name, ("fired",)),)
            for name, module in spike_sources(model).items()
            if isinstance(module, LIF | Tap)
        }
        for name, module in model.named_modules():
            if isinstance(module, ConvNorm):
                conv = module.conv
                came = _driven(name, conv.out_channels, int(conv.kernel_size[0]))
                # One call hears the spikes that come, and those of its own neurons, if it has any.
                went = fires.pop(name) if isinstance(module, ConvNormLIF) else ()
                self._listen(module, () if name == "stem.image" else came, went)
            elif name in fires:
                self._listen(module, (), fires[name])
        for b, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            agree = partial(self._agreement, (_Use(f"blocks.{b}.attention", ("agreements",)),))
            self._stops.append(block.attention.gate.register_forward_pre_hook(agree))
        self._listen(model.head, _driven("head", model.head.out_features), ())
        self._stops.append(model.head.register_forward_hook(self._complete))

    def stop(self) -> None:
        for handle in self._stops:
            handle.remove()

    def _listen(self, module: nn.Module, came: Uses, went: Uses) -> None:
        self._stops.append(module.register_forward_hook(partial(self._hear, came, went)))

    # -------------------------------------------------------------- what is heard

    def _begin(self, _stem: nn.Module, inputs: tuple[Tensor, int, nn.Module]) -> None:
        x_SBCHW, num_steps, _ = inputs
        S, B, _, H, W = x_SBCHW.shape
        if B == 0:
            raise DataError(
                "the batch is empty; there must be at least one image to be counted: "
                "drop empty batches"
            )
        self._heard.clear()
        net = network(self.config, H, W)
        self._pass = Counts(
            network=net, images=B, frames=S * B, time_steps=num_steps * B,
            passes={(S, num_steps): B},
        )  # fmt: skip
        if self.bytes_as is not None:
            levels = _as_bytes(x_SBCHW, *self.bytes_as)
            ones = _BITS[levels.long()].sum(dim=(1, 2)).to(x_SBCHW.device)
            bits = _Use("stem.image", ("bit_additions",), self.config.width // 8, 3)
            self._heard.append(((bits,), _Seen(ones)))

    def _hear(
        self, came: Uses, went: Uses, _layer: nn.Module, inputs: tuple[Tensor], s: Tensor
    ) -> None:
        if came:
            self._heard.append((came, self._seen(inputs[0])))
        if went:
            self._heard.append((went, self._seen(s)))

    def _agreement(self, uses: Uses, _gate: nn.Module, inputs: tuple[Tensor]) -> None:
        sums = inputs[0].detach()
        narrow = torch.finfo(sums.dtype)
        if narrow.bits < 32 and sums.numel() and float(sums.max()) >= 2 / narrow.eps:
            raise ShapeError(
                f"key and value agree at {sums.max():.0f} tokens or so; in {sums.dtype} they must "
                f"be fewer than {2 / narrow.eps:.0f} to be counted exactly: count in float32"
            )
        self._heard.append((uses, _Seen(sums.sum(dim=(1, 2), dtype=torch.float64))))

    def _complete(self, _head: nn.Module, _inputs: Any, _output: Any) -> None:
        """Read out a pass whose last layer is done."""
        heard, self._heard = self._heard, []
        _read_out([seen for _, seen in heard])
        layers = self.counts.caused
        for uses, seen in heard:
            for use in uses:
                numbers = seen.total if use.kernel == 1 else seen.windows
                if use.factor > 1:
                    numbers = [use.factor * number for number in numbers]
                own = layers.get(use.layer)
                if own is None:
                    own = layers[use.layer] = LayerCounts()
                for kind in use.kinds:
                    own.add(kind, numbers)
        if self._pass is not None:
            self.counts.add(self._pass)
            self._pass = None

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


def _measure(s: Tensor) -> _Seen:
    """Sum up; over channels and images in single precision while that is exact, then in double."""
    wide = torch.promote_types(s.dtype, torch.float32)
    if s.shape[1] * s.shape[2] < EXACT:
        return _Seen(s.sum(dim=(1, 2), dtype=wide))
    return _Seen(s.sum(dim=2, dtype=wide).sum(dim=1, dtype=torch.float64))


def _read_out(every: list[_Seen]) -> None:
    """Sum over pixels, all that are of one size together."""
    by_size: dict[torch.Size, dict[int, _Seen]] = {}
    for seen in every:
        by_size.setdefault(seen.per_pixel.shape[1:], {})[id(seen)] = seen
    for size, of_size in by_size.items():
        H, W = size or (1, 1)
        stacked = torch.cat([seen.per_pixel for seen in of_size.values()]).double()
        # Whole numbers far below 2**53: the order of their sum does not matter.
        sums = (stacked.reshape(-1, H * W) @ _taps(H, W, 3, stacked.device)).tolist()
        first = 0
        for seen in of_size.values():
            steps = seen.per_pixel.shape[0]
            rows = sums[first : first + steps]
            first += steps
            seen.total = [int(total) for total, _ in rows]
            seen.windows = [int(windows) for _, windows in rows]


@lru_cache(maxsize=64)
def _taps(height: int, width: int, kernel: int, device: torch.device) -> Tensor:
    """Return, for each pixel, 1 and in how many windows of a kernel it lies: [H W, 2]."""
    with torch.inference_mode(False):  # it outlives the mode in which it is first asked for
        like = torch.zeros((), dtype=torch.float64, device=device)
        seen = sight(height, kernel, like)[:, None] * sight(width, kernel, like)
        return torch.stack([torch.ones_like(seen), seen], dim=-1).flatten(0, 1)


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


def _as_bytes(x_SBCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    channels = x_SBCHW.shape[2]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ConfigError(
            f"mean is {mean} and std is {std}; each must have one number for each of {channels} "
            "channels, std above 0: pass the data's own"
        )
    centre, spread = _affine(mean), _affine(std)
    exact = (x_SBCHW.detach().cpu().double() * spread + centre) * 255
    levels = exact.round()
    if float((exact - levels).abs().max()) > BYTE:
        strange = exact[(exact - levels).abs() > BYTE][0]
        raise ShapeError(
            f"the input read back as bytes holds {strange:.4g}; with mean {mean} and std {std} "
            "each pixel must be a whole number: normalise the images as you say, or count without "
            "mean and std"
        )
    lowest, highest = (float(level) for level in levels.aminmax())
    if lowest < 0 or highest > 255:
        raise ShapeError(
            f"the input read back as bytes goes from {lowest:.0f} to {highest:.0f}; "
            f"with mean {mean} and std {std} it must lie in 0 to 255: normalise the images as you "
            "say, or count without mean and std"
        )
    return levels


@lru_cache(maxsize=16)
def _affine(of_channels: tuple[float, ...]) -> Tensor:
    """Return one number for each channel, [C, 1, 1]."""
    with torch.inference_mode(False):  # as in `_taps`
        return torch.tensor(of_channels, dtype=torch.float64).view(-1, 1, 1)
