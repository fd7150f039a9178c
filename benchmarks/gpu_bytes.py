"""The bytes that a training step must move and keep, from the shapes of a network alone.

Three ways are counted for each unit: the *fewest* bytes, when batch norm, addition and neuron are
one walk over memory and spikes are kept as bits that the neuron wrote; *ours*, as the package's
kernels do it; and *one by one*, each operation reading its operands and writing its result, the
neuron keeping its membranes. A number outside of a kernel has `WORD` bytes (half precision).
`python benchmarks/gpu.py --bytes` keeps the records; `docs/gpu.md` shows them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from spikedriven.energy.shape import network
from spikedriven.models.sdt import SDTConfig

WORD = 2
BIT = 1 / 8
INDEX = 8
"""Bytes of one of PyTorch's max-pool indices."""
SINGLE = 4
WAYS = ("fewest", "ours", "one by one")


@dataclass(frozen=True)
class Bytes:
    """What one unit moves forward and backward, and keeps in between."""

    forward: float
    backward: float
    kept: float

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(
            self.forward + other.forward, self.backward + other.backward, self.kept + other.kept
        )


def convolution(
    inputs: int, outputs: int, weights: int, images: int, way: str, *, shares: bool = False
) -> Bytes:
    """Count a convolution of spikes.

    Args:
        inputs: Spikes that enter, all steps of an image.
        outputs: Currents that leave.
        weights: Weights, read once for a batch.
        images: The batch, that weights are divided among.
        way: One of `WAYS`.
        shares: Whether another convolution reads the same spikes: as one they would be read once.
    """
    m, n, p = inputs * WORD, outputs * WORD, weights * WORD / images
    forward, bits = m + n + p, inputs * BIT
    to_spikes = n + p + m
    to_weights = n + weights * SINGLE / images
    if way == "fewest":  # the neuron wrote the bits; a convolution reads them
        if shares:
            return Bytes(forward - m, to_spikes - m + to_weights, 0)
        return Bytes(forward, to_spikes + to_weights + bits, bits)
    addition = 3 * m if shares else 0  # of its gradient to the other's
    if way == "ours":  # each packs its bits from the spikes, and unpacked for PyTorch's convolution
        return Bytes(forward + m + bits, to_spikes + to_weights + bits + 2 * m + addition, bits)
    return Bytes(forward, to_spikes + to_weights + m + addition, 0 if shares else m)


def neuron(currents: int, spikes: int, way: str) -> Bytes:
    """Count batch norm and the neurons behind it; a static image has fewer currents than spikes."""
    x, s = currents * WORD, spikes * WORD
    if way in ("fewest", "ours"):  # statistics, then fire; sums, then gradients
        return Bytes(2 * x + s, 2 * (x + s) + x, x)
    apart = 3 * x + s + 2 * s  # statistics and map; then a current, spikes and membranes of each
    return Bytes(apart, 3 * s + 2 * x + 3 * x, x + s)


def joined(sites: int, way: str) -> Bytes:
    """Count batch norm, the addition to the stream, and the neurons that the stream feeds."""
    n = sites * WORD
    if way in ("fewest", "ours"):
        # statistics; x, u -> u, s. Sums: ds, du, u, x -> du; then du, x -> dx
        return Bytes((1 + 4) * n, (5 + 3) * n, 2 * n)
    return Bytes((3 + 3 + 3) * n, (3 + 3 + 5) * n, 3 * n)


def entrance(sites: int, pools: bool, way: str) -> Bytes:
    """Count the stem's fourth stage: batch norm, a pool of membranes, and the neurons behind it.

    Args:
        sites: Currents before the pool.
        pools: Whether there is one, which halves the image.
        way: One of `WAYS`.
    """
    n = sites * WORD
    q = n / 4 if pools else n
    if way == "fewest":  # statistics; x -> u, s. Sums: ds, du, x; then the same -> dx
        return Bytes(2 * n + 2 * q, 3 * n + 4 * q, n)
    # ours, too, leaves norm and pool to PyTorch, which keeps the norm's result for the pool's shape
    indices = sites / 4 * INDEX if pools else 0
    pool = Bytes(n + q + indices, q + indices + n, n + indices) if pools else Bytes(0, 0, 0)
    membranes = q if way == "one by one" else 0
    # backward: neuron, the sum of both gradients of its current, norm
    return pool + Bytes(3 * n + 2 * q + membranes, (3 + 3) * q + 5 * n, n + q)


def departure(sites: int, way: str) -> Bytes:
    """Count the last batch norm, its addition to the stream, and the mean that the head reads."""
    n = sites * WORD
    if way == "fewest":  # statistics; x, u -> mean, whose gradient is small. Sums: x; x -> dx
        return Bytes((1 + 2) * n, (1 + 2) * n, n)
    # norm, addition, mean; the mean's gradient is written out for the norm and for the stream
    return Bytes((3 + 3 + 1) * n, (1 + 1 + 5) * n, n)


def pool(spikes: int, way: str) -> Bytes:
    """Count a pool that halves an image of spikes."""
    n, quarter, bits = spikes * WORD, spikes * WORD / 4, spikes * BIT
    indices = spikes / 4 * INDEX
    if way == "fewest":
        return Bytes(n + quarter, quarter + bits + n, bits)
    if way == "ours":  # each window keeps which of its pixels won, a byte
        winners = spikes / 4
        return Bytes(n + quarter + winners, quarter + winners + n, winners)
    return Bytes(n + quarter + indices, quarter + indices + n, indices)


def attention(sites: int, way: str) -> Bytes:
    """Count query, key and value meeting; the gate's neurons are too few to show."""
    n, bits = sites * WORD, sites * BIT
    if way in ("fewest", "ours"):
        return Bytes(4 * n + 3 * bits, n + 3 * n + 3 * bits, 3 * bits)
    products = 3 + 1 + 2  # k v, their sum, the masked query
    return Bytes(products * n, (2 + 3 + 1 + 4) * n, 3 * n)


def units(config: SDTConfig, size: int, images: int, way: str) -> Iterator[tuple[str, Bytes]]:
    """Yield every unit of a network with its bytes per image."""
    net, T = network(config, size, size), config.num_steps
    for layer in net.synapses[:-1]:
        here = layer.height * layer.width
        is_image = layer.name == "stem.image"
        steps = 1 if is_image else T  # a static image passes its convolution once
        inputs, outputs = steps * layer.inputs * here, steps * layer.outputs * here
        weights = layer.inputs * layer.outputs * layer.kernel**2
        kind = "convolution" if layer.kernel > 1 else "linear"
        shares = layer.name.endswith((".key", ".value"))  # the query's spikes are theirs
        yield kind, convolution(inputs, outputs, weights, images, way, shares=shares)
        if layer.name in net.neurons:
            yield "norm, neuron", neuron(outputs, T * layer.outputs * here, way)
        elif layer.name == "stem.fourth":
            yield "norm, pool, neuron", entrance(outputs, layer.name in net.pools, way)
        elif layer is net.synapses[-2]:
            yield "norm, addition, mean", departure(outputs, way)
        else:
            yield "norm, addition, neuron", joined(outputs, way)
        if layer.name in net.pools and layer.name != "stem.fourth":
            yield "pool", pool(T * layer.outputs * here, way)
        if layer.name.endswith(".value"):
            yield "attention", attention(T * config.width * net.tokens, way)


def totals(config: SDTConfig, size: int, images: int, way: str) -> dict[str, Bytes]:
    """Return the bytes per image of each kind of unit, and of `all`."""
    found = {"all": Bytes(0, 0, 0)}
    for kind, unit in units(config, size, images, way):
        found[kind] = found.get(kind, Bytes(0, 0, 0)) + unit
        found["all"] = found["all"] + unit
    return found
