"""The sizes of a Spike-driven Transformer, and what they alone decide: arithmetic, no tensors."""

from dataclasses import dataclass
from functools import lru_cache

from spikedriven.errors import ShapeError
from spikedriven.models.sdt import MOST, SDTConfig

PARTS = ("image", "stem", "query, key, value", "attention", "project", "mlp", "head")
"""What a reader wants added up, in the order of the network."""
IMAGE, STEM, QKV, ATTENTION, PROJECT, MLP, HEAD = PARTS


@lru_cache(maxsize=64)
def windows(side: int, kernel: int, stride: int = 1) -> int:
    """Return how many taps of a centred window lie inside a line, over all its positions.

    Example:
        Three taps over five pixels miss one on either end:

        >>> windows(5, 3)
        13
    """
    reach = kernel // 2
    return sum(
        min(centre + reach, side - 1) - max(centre - reach, 0) + 1
        for centre in range(0, side, stride)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Synapses:
    """One layer of weights."""

    name: str
    part: str
    """One of `PARTS`."""
    block: int | None
    """Encoder block, or None outside of them."""
    source: str
    """The neurons whose spikes it reads; for the first layer the empty name of the image."""
    inputs: int
    """Input channels."""
    outputs: int
    """Output channels."""
    kernel: int
    """Side of its window, 1 or 3."""
    height: int
    """Rows of its output."""
    width: int
    """Columns of its output."""

    @property
    def nominal(self) -> int:
        """Synaptic operations of one step if every input fired, padding counted: the paper's FL."""
        return self.kernel**2 * self.height * self.width * self.inputs * self.outputs

    @property
    def dense(self) -> int:
        """The same without the padding: synapses that exist."""
        return (
            windows(self.height, self.kernel)
            * windows(self.width, self.kernel)
            * self.inputs
            * self.outputs
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """Every layer of a network for images of one size; the two decide all else, and equality."""

    config: SDTConfig
    height: int
    """Rows of the image."""
    width: int
    """Columns of the image."""
    synapses: tuple[Synapses, ...]
    """In the order of the network."""
    neurons: dict[str, int]
    """Layer of neurons -> how many there are."""
    pools: dict[str, tuple[int, int, int]]
    """Neurons or synapses whose output is pooled -> channels, rows and columns before."""

    @property
    def tokens(self) -> int:
        """Tokens, N."""
        return (self.height // self.config.stride) * (self.width // self.config.stride)

    @property
    def sites(self) -> dict[str, int]:
        """Where spikes are recorded, at one step: the neurons, and the masked queries."""
        masked = {
            f"blocks.{b}.attention.masked": self.config.width * self.tokens
            for b in range(self.config.depth)
        }
        return self.neurons | masked

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[SDTConfig, int, int]:
        return self.config, self.height, self.width

    def __getitem__(self, name: str) -> Synapses:
        return next(layer for layer in self.synapses if layer.name == name)


@lru_cache(maxsize=16)
def network(config: SDTConfig, height: int, width: int) -> Network:
    """Lay out a network for images of height x width pixels.

    Raises:
        ShapeError: The size is no positive multiple of the config's stride, or beyond `MOST`.
    """
    if max(height, width) > MOST:
        raise ShapeError(
            f"the image is {height} x {width}; both sides must be at most {MOST}: "
            "choose another size"
        )
    if min(height, width) < 1 or height % config.stride or width % config.stride:
        raise ShapeError(
            f"the image is {height} x {width}; both sides must be multiples of {config.stride}: "
            "choose another size"
        )
    D, hidden = config.width, config.hidden
    synapses: list[Synapses] = []
    neurons: dict[str, int] = {}
    pools: dict[str, tuple[int, int, int]] = {}
    h, w = height, width

    def layer(
        name: str, part: str, source: str, inputs: int, outputs: int,
        kernel: int = 1, block: int | None = None, *, fires: bool = False,
    ) -> None:  # fmt: skip
        synapses.append(
            Synapses(
                name=name, part=part, block=block, source=source, inputs=inputs, outputs=outputs,
                kernel=kernel, height=h, width=w,
            )
        )  # fmt: skip
        if fires:
            neurons[name] = outputs * h * w

    def pool(stage: int, name: str, channels: int) -> None:
        nonlocal h, w
        if config.stem_pool[stage] == "1":
            pools[name] = (channels, h, w)
            h, w = h // 2, w // 2

    layer("stem.image", IMAGE, "", config.in_channels, D // 8, 3, fires=True)
    pool(0, "stem.image", D // 8)
    layer("stem.second", STEM, "stem.image", D // 8, D // 4, 3, fires=True)
    pool(1, "stem.second", D // 4)
    layer("stem.third", STEM, "stem.second", D // 4, D // 2, 3, fires=True)
    pool(2, "stem.third", D // 2)
    layer("stem.fourth", STEM, "stem.third", D // 2, D, 3)
    pool(3, "stem.fourth", D)
    neurons["stem.fourth_lif"] = D * h * w
    layer("stem.position", STEM, "stem.fourth_lif", D, D, 3)
    for b in range(config.depth):
        attention, mlp = f"blocks.{b}.attention", f"blocks.{b}.mlp"
        neurons[f"{attention}.fire"] = D * h * w
        for name in ("query", "key", "value"):
            layer(f"{attention}.{name}", QKV, f"{attention}.fire", D, D, block=b, fires=True)
        neurons[f"{attention}.gate"] = D
        layer(f"{attention}.project", PROJECT, f"{attention}.masked", D, D, block=b)
        neurons[f"{mlp}.fire"] = D * h * w
        layer(f"{mlp}.expand", MLP, f"{mlp}.fire", D, hidden, block=b, fires=True)
        layer(f"{mlp}.contract", MLP, f"{mlp}.expand", hidden, D, block=b)
    neurons["head_lif"] = D
    h = w = 1
    layer("head", HEAD, "head_lif", D, config.num_classes)
    return Network(
        config=config, height=height, width=width, synapses=tuple(synapses), neurons=neurons,
        pools=pools,
    )  # fmt: skip


Standing = dict[str, dict[str, int]]
"""Layer -> kind of count (`counts.OPERATIONS`) -> how many, for one image and one time step."""


@lru_cache(maxsize=16)
def standing(net: Network) -> Standing:
    """Return what one image costs at each time step, whatever fires; the first layer, each frame.

    Neurons leak, pools compare and spikes are looked at in silence too. What spikes cause is not
    here: that is counted.
    """
    layers: Standing = {}

    def add(name: str, **kinds: int) -> None:
        own = layers.setdefault(name, {})
        for kind, number in kinds.items():
            own[kind] = own.get(kind, 0) + number

    config, tokens = net.config, net.tokens
    D, sites = config.width, config.width * tokens
    for layer in net.synapses:
        add(layer.name, dense=layer.dense, nominal=layer.nominal)
        read = layer.inputs * layer.height * layer.width
        if layer.part == IMAGE:
            add(layer.name, multiplications=layer.dense, weights_read=layer.dense, pixels_read=read)
        else:
            add(layer.name, spikes_read=read)
        if (
            layer.name == "stem.position"
            or layer.part == PROJECT
            or layer.name.endswith("contract")
        ):
            joined = layer.outputs * layer.height * layer.width
            add(
                layer.name,
                stream_additions=joined, membranes_read=joined, membranes_written=joined,
            )  # fmt: skip
    for name, number in net.neurons.items():
        add(
            name,
            updates=number, membranes_read=number, membranes_written=number, spikes_written=number,
        )  # fmt: skip
        if config.neuron == "plif":
            add(name, leak_multiplications=number)
    for name, (channels, h, w) in net.pools.items():
        before, after = channels * h * w, channels * (h // 2) * (w // 2)
        joins = channels * windows(h, 3, 2) * windows(w, 3, 2) - after
        if name == "stem.fourth":  # membranes: a real maximum
            add(
                f"{name}.pool",
                comparisons=joins, membranes_read=before, membranes_written=after,
            )  # fmt: skip
        else:
            add(f"{name}.pool", ors=joins, spikes_read=before, spikes_written=after)
    for b in range(config.depth):
        name = f"blocks.{b}.attention"
        # Key AND value, their OR over tokens; query AND the gate of its channel.
        add(
            name,
            ands=2 * sites, ors=sites - D, spikes_read=3 * sites + D, spikes_written=sites,
        )  # fmt: skip
        if config.dvs_dilation:
            add(name, ors=_dilation_ors(net))
    add("head_lif", stream_additions=D * (tokens - 1), membranes_read=sites)
    return layers


def _dilation_ors(net: Network) -> int:
    """Return the ORs of the four 3x3 dilations of a block: two over pixels, two over tokens."""
    config, tokens = net.config, net.tokens
    h, w = net.height // config.stride, net.width // config.stride
    inside = config.width // config.num_heads
    over_pixels = config.width * (windows(h, 3) * windows(w, 3) - tokens)
    over_tokens = config.num_heads * (windows(tokens, 3) * windows(inside, 3) - tokens * inside)
    return 2 * over_pixels + 2 * over_tokens
