"""Joules: counts times an entry of a cited table, by one of three conventions.

`published`  The paper's Table 1, word for word: query, key and value are charged with the firing
             rate of their own spikes, the first convolution with that of its neurons, at each step.
`executed`   Every synaptic addition that occurs, driven by the spikes that come in, and every
             multiplication of a pixel. What neurons (a learned leak multiplies), pools and the
             membrane stream do is listed beside it.
`memory`     All of that together, and every weight, membrane and spike that is read or written.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spikedriven.energy.costs import TABLES, Costs
from spikedriven.energy.counts import Counts
from spikedriven.energy.rates import Rates, check_rates
from spikedriven.energy.shape import (
    ATTENTION,
    HEAD,
    IMAGE,
    MLP,
    PARTS,
    PROJECT,
    QKV,
    STEM,
    Network,
    standing,
)
from spikedriven.errors import ConfigError, DataError

CONVENTIONS = ("published", "executed", "memory")
IMAGES = ("once", "repeated", "bits")
"""How the first convolution meets a static image: once, at each of T steps, or as its bits."""

PJ_PER_MJ = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind of operation of one layer."""

    layer: str
    part: str
    """One of `shape.PARTS`."""
    block: int | None
    operation: str
    """Kind, as in `counts.OPERATIONS`."""
    number: float
    """How many per image, all steps together."""
    pj: float
    """What one costs, in picojoules."""

    @property
    def energy_pj(self) -> float:
        """Energy per image in picojoules."""
        return self.number * self.pj


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The energy of one image, line by line."""

    convention: str
    costs: Costs
    images: int
    """Images that the counts average over; 0 where a table of rates was charged."""
    lines: tuple[Line, ...]
    """What is charged."""
    beside: tuple[Line, ...] = ()
    """What happens too, and is not charged by this convention."""

    @property
    def total_mj(self) -> float:
        """Energy per image in millijoules."""
        return _mj(self.lines)

    @property
    def beside_mj(self) -> float:
        """Energy per image of what is listed beside, in millijoules."""
        return _mj(self.beside)

    def by_part(self) -> dict[str, float]:
        """Return part of the network -> millijoules per image."""
        return {part: _mj(line for line in self.lines if line.part == part) for part in PARTS}

    def by_block(self) -> dict[str, float]:
        """Return encoder block, or what is outside of them -> millijoules per image."""
        blocks = dict.fromkeys(_block(line) for line in self.lines)
        return {b: _mj(line for line in self.lines if _block(line) == b) for b in blocks}

    def by_layer(self) -> dict[str, float]:
        """Return layer -> millijoules per image."""
        layers = dict.fromkeys(line.layer for line in self.lines)
        return {n: _mj(line for line in self.lines if line.layer == n) for n in layers}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRatio:
    """Self-attention alone, a block's mean: the paper's Table 4."""

    e1_pj: float
    """The same-shape network's: query, key, value and softmax(QK)V, without scale."""
    e2_pj: float
    """The spike-driven one's."""
    e1_project_pj: float
    """E1 with the output projection."""
    e2_project_pj: float
    """E2 with the output projection."""

    @property
    def ratio(self) -> float:
        """E1/E2."""
        return self.e1_pj / self.e2_pj if self.e2_pj else math.inf

    @property
    def ratio_project(self) -> float:
        """E1/E2, both with the output projection."""
        return self.e1_project_pj / self.e2_project_pj if self.e2_project_pj else math.inf


@dataclass(frozen=True, slots=True)
class _Work:
    """What both counts and rates come down to: numbers per image, all steps together."""

    network: Network
    images: int
    steps: float
    """Time steps of an image."""
    frames: float
    """Frames that the first layer meets."""
    numbers: Mapping[str, Mapping[str, float]]
    """Layer -> kind -> number."""
    rates: Mapping[str, float]
    """Recorded firing rates, before any pooling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A table of rates for a network of a certain size: what can be charged without weights.

    Its additions are rates times synapses as the literature takes them: windows padded, which is
    too much, and rates recorded before pooling, which lets more spikes through. So a stem's row may
    lie on either side of its count.
    """

    network: Network
    rates: Rates
    is_event: bool = False
    """Whether the first layer meets another frame at each step."""

    def __post_init__(self) -> None:
        check_rates(self.rates, self.network)


def energy(
    counted: Counts | Estimate,
    convention: str = "executed",
    *,
    costs: Costs | None = None,
    image: str = "once",
) -> Account:
    """Charge what was counted.

    Args:
        counted: Counts of forward passes, or an estimate from a table of rates.
        convention: `published`, `executed` or `memory`; see above.
        costs: Price of each operation; by default 45 nm, float32, as the paper has it.
        image: How the first convolution meets a static image, in all conventions but `published`:
            `once`, as it runs here; `repeated` at each time step, as released; or as `bits`, as the
            engine adds them up.

    Returns:
        The energy of one image.

    Raises:
        ConfigError: `counted` is of another type, `convention` or `image` is unknown, or the
            image's bits were not counted.
        DataError: Nothing was counted.
    """
    if not isinstance(counted, Counts | Estimate):
        raise ConfigError(
            f"counted is of type {type(counted).__name__}; it must be Counts or an Estimate: take "
            "what count returns"
        )
    if convention not in CONVENTIONS:
        raise ConfigError(
            f"the convention is {convention!r}; it must be one of {', '.join(CONVENTIONS)}: "
            "choose one"
        )
    if image not in IMAGES:
        raise ConfigError(f"image is {image!r}; it must be one of {', '.join(IMAGES)}: choose one")
    work = _work(counted)
    prices = costs or TABLES["float32"]
    if convention == "published":
        return Account(
            convention=convention, costs=prices, images=work.images,
            lines=tuple(_published(work, prices)),
        )  # fmt: skip
    synapses = tuple(_synapses(work, prices, image))
    rest = tuple(_neurons_and_stream(work, prices))
    if convention == "executed":
        return Account(
            convention=convention, costs=prices, images=work.images, lines=synapses, beside=rest
        )
    traffic = tuple(_traffic(work, prices, image))
    return Account(
        convention=convention, costs=prices, images=work.images, lines=synapses + rest + traffic
    )


def ann(counted: Counts | Estimate, costs: Costs | None = None, *, memory: bool = False) -> Account:
    """Charge the same-shape artificial network: one pass, a product for each synapse, softmax.

    Args:
        counted: What the network is compared with: beside counts its windows end at the border as
            theirs do, beside an estimate they are padded as there.
        costs: As in `energy`.
        memory: Also charge weights and activations that are read and written, as `memory` does.

    Raises:
        DataError: Nothing was counted.

    Source: the paper's Table 1, column "Vanilla"; its scale costs a multiplication, its softmax two
        products, for each pair of tokens.
    """
    prices = costs or TABLES["float32"]
    net = _work(counted).network
    N, D = net.tokens, net.config.width
    lines = []
    for layer in net.synapses:
        at = {"layer": layer.name, "part": layer.part, "block": layer.block}
        products = layer.dense if isinstance(counted, Counts) else layer.nominal
        lines.append(_line(at, "multiplications", products, prices.accumulation))
        if memory:
            inputs = layer.inputs * layer.height * layer.width
            outputs = layer.outputs * layer.height * layer.width
            lines.append(_line(at, "weights_read", products, prices.weight_read))
            lines.append(_line(at, "activations", inputs + outputs, prices.activation_access))
    for b in range(net.config.depth):
        at = {"layer": f"blocks.{b}.attention", "part": ATTENTION, "block": b}
        lines.append(_line(at, "multiplications", 2 * N * N * D + 2 * N * N, prices.accumulation))
        lines.append(_line(at, "scalings", N * N, prices.multiplication))
        if memory:
            # Query, key, value and result once; the map of N x N weights written and read.
            lines.append(_line(at, "activations", 4 * N * D + 2 * N * N, prices.activation_access))
    return Account(convention="ann", costs=prices, images=0, lines=tuple(lines))


def attention(
    counted: Counts | Estimate, convention: str = "executed", *, costs: Costs | None = None
) -> AttentionRatio:
    """Compare self-attention alone, query, key and value included, with the same-shape network's.

    Args:
        counted: As in `energy`.
        convention: `published` or `executed`.
        costs: Prices of both sides; by default float32, as the paper has it.

    Raises:
        ConfigError: The convention is another.
        DataError: Nothing was counted.

    Source: the paper's Table 4. Its E1 of 8-384 is 4.6 pJ (4 N D^2 + 2 N^2 D), projection included.
    """
    if convention not in ("published", "executed"):
        raise ConfigError(
            f"the convention is {convention!r}; attention alone is compared as published or as "
            "executed: choose one of them"
        )
    work = _work(counted)
    account = energy(counted, convention, costs=costs)
    depth, N, D = work.network.config.depth, work.network.tokens, work.network.config.width
    parts = account.by_part()
    mac = (costs or TABLES["float32"]).accumulation
    e1 = mac * (3 * N * D * D + 2 * N * N * D)
    e2 = (parts[QKV] + parts[ATTENTION]) * PJ_PER_MJ / depth
    return AttentionRatio(
        e1_pj=e1,
        e2_pj=e2,
        e1_project_pj=e1 + mac * N * D * D,
        e2_project_pj=e2 + parts[PROJECT] * PJ_PER_MJ / depth,
    )


def _mj(lines: Iterable[Line]) -> float:
    return math.fsum(line.energy_pj for line in lines) / PJ_PER_MJ


def _block(line: Line) -> str:
    return line.part if line.block is None else f"block {line.block}"


# ------------------------------------------------------------------ counts and rates alike


def _work(counted: Counts | Estimate) -> _Work:
    if isinstance(counted, Estimate):
        return _estimated(counted)
    if counted.network is None:
        raise DataError(
            "nothing was counted; an account needs at least one image: run the model inside "
            "counting(), or give a dataset that is not empty"
        )
    return _Work(
        network=counted.network,
        images=counted.images,
        steps=counted.time_steps / counted.images,
        frames=counted.frames / counted.images,
        numbers={
            name: {kind: sum(steps) / counted.images for kind, steps in layer.steps.items()}
            for name, layer in counted.layers.items()
        },
        rates=counted.rates,
    )


def _estimated(estimate: Estimate) -> _Work:
    net, rates = estimate.network, estimate.rates
    T = rates.num_steps or net.config.num_steps
    numbers: dict[str, dict[str, float]] = {
        name: {kind: number * T for kind, number in kinds.items()}
        for name, kinds in standing(net).items()
    }
    frames = T if estimate.is_event else 1
    for kind in ("multiplications", "weights_read", "pixels_read", "dense", "nominal"):
        numbers["stem.image"][kind] *= frames / T  # a static image passes once
    first = frames * net["stem.image"].nominal
    numbers["stem.image"]["multiplications"] = numbers["stem.image"]["weights_read"] = first
    for layer in net.synapses:
        if layer.part != IMAGE:
            additions = T * rates.mean(layer.source) * layer.nominal
            numbers[layer.name]["additions"] = numbers[layer.name]["weights_read"] = additions
    for b in range(net.config.depth):
        name = f"blocks.{b}.attention"
        share = (
            rates.mean(f"{name}.agreement")
            if f"{name}.agreement" in rates.layers
            else min(rates.mean(f"{name}.key"), rates.mean(f"{name}.value"))  # at most
        )
        numbers[name]["agreements"] = T * share * net.config.width * net.tokens
    means = {name: rates.mean(name) for name in rates.layers}
    return _Work(net, 0, T, frames, numbers, means)


def _line(at: Mapping[str, object], operation: str, number: float, pj: float) -> Line:
    return Line(**at, operation=operation, number=number, pj=pj)  # type: ignore[arg-type]


def _place(work: _Work, layer: str) -> dict[str, object]:
    """Return where a layer of any kind belongs."""
    for synapses in work.network.synapses:
        if synapses.name == layer:
            return {"layer": layer, "part": synapses.part, "block": synapses.block}
    block = int(layer.split(".")[1]) if layer.startswith("blocks.") else None
    if block is None:
        part = IMAGE if layer.startswith("stem.image") else STEM
        part = HEAD if layer == "head_lif" else part
    elif ".mlp." in layer:
        part = MLP
    else:
        part = QKV if layer.endswith("fire") else ATTENTION
    return {"layer": layer, "part": part, "block": block}


# ------------------------------------------------------------------ the conventions


def _published(work: _Work, prices: Costs) -> list[Line]:
    net, T, rate = work.network, work.steps, work.rates
    lines = []
    for layer in net.synapses:
        at = _place(work, layer.name)
        if layer.part == IMAGE:
            number = T * rate[layer.name] * layer.nominal
            lines.append(_line(at, "multiplications", number, prices.accumulation))
        elif layer.part == QKV:
            # The mean of the three rates for all three: Table 1 charges what comes out.
            name = f"blocks.{layer.block}.attention"
            mean = sum(rate[f"{name}.{part}"] for part in ("query", "key", "value")) / 3
            lines.append(_line(at, "additions", T * mean * layer.nominal, prices.addition))
        elif layer.part != HEAD:  # Table 1 does not charge the head
            number = T * rate[layer.source] * layer.nominal
            lines.append(_line(at, "additions", number, prices.addition))
    for b in range(net.config.depth):
        name = f"blocks.{b}.attention"
        both = rate[f"{name}.key"] + rate[f"{name}.value"]
        number = T * both * net.tokens * net.config.width
        lines.append(_line(_place(work, name), "additions", number, prices.addition))
    return lines


def _first_layer(work: _Work, image: str) -> tuple[str, float]:
    """Return the kind and number of the first layer's operations."""
    numbers = work.numbers["stem.image"]
    if image == "bits":
        if "bit_additions" not in numbers:
            raise ConfigError(
                "the image's bits were not counted; they must be to charge image = bits: count "
                "with mean and std, or charge it once"
            )
        return "bit_additions", numbers["bit_additions"]
    times = work.steps / work.frames if image == "repeated" else 1
    return "multiplications", numbers["multiplications"] * times


def _synapses(work: _Work, prices: Costs, image: str) -> list[Line]:
    lines = []
    for layer in work.network.synapses:
        at = _place(work, layer.name)
        if layer.part == IMAGE:
            kind, number = _first_layer(work, image)
            pj = prices.addition if kind == "bit_additions" else prices.accumulation
            lines.append(_line(at, kind, number, pj))
        else:
            number = work.numbers[layer.name]["additions"]
            lines.append(_line(at, "additions", number, prices.addition))
    for b in range(work.network.config.depth):
        name = f"blocks.{b}.attention"
        number = work.numbers[name]["agreements"]
        lines.append(_line(_place(work, name), "agreements", number, prices.addition))
    return lines


def _neurons_and_stream(work: _Work, prices: Costs) -> list[Line]:
    pj = {
        # (i - v)/2 is a subtraction and a shift; adding it, and comparing with the threshold.
        "updates": 3 * prices.addition,
        "leak_multiplications": prices.multiplication,
        "ands": prices.logic,
        "ors": prices.logic,
        "comparisons": prices.addition,
        "stream_additions": prices.addition,
    }
    return _priced(work, pj)


def _traffic(work: _Work, prices: Costs, image: str) -> list[Line]:
    pj = {
        "weights_read": prices.weight_read,
        "membranes_read": prices.membrane_access,
        "membranes_written": prices.membrane_access,
        "spikes_read": prices.spike_access,
        "spikes_written": prices.spike_access,
        "pixels_read": prices.activation_access,
    }
    _, first = _first_layer(work, image)
    times = work.steps / work.frames if image == "repeated" else 1
    own = dict(work.numbers["stem.image"])
    own |= {"weights_read": first, "pixels_read": own["pixels_read"] * times}
    return _priced(
        _Work(
            work.network, work.images, work.steps, work.frames,
            {**work.numbers, "stem.image": own}, work.rates,
        ),
        pj,
    )  # fmt: skip


def _priced(work: _Work, pj: Mapping[str, float]) -> list[Line]:
    return [
        _line(_place(work, layer), kind, kinds[kind], price)
        for layer, kinds in work.numbers.items()
        for kind, price in pj.items()
        if kind in kinds
    ]
