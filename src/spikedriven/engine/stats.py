"""What a run did, counted in whole numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class LayerStats:
    """One synaptic layer, over all images and steps of a run."""

    spikes: int = 0
    """Spikes that came in."""
    additions: int = 0
    """Synaptic additions: one for each spike and each synapse that it drives. A spike at the
    border drives fewer."""
    dense: int = 0
    """What `additions` would be if every input fired."""
    rows: int = 0
    """Rows of weights read: a channel that fires at several of four steps is read once."""
    row_bytes: int = 0
    """Bytes of one row."""
    seconds: float = 0.0
    """Time, neurons and lists of events included."""

    @property
    def skipped(self) -> float:
        """Share of the dense work that was not done; 0 where there was none to do."""
        return 1 - self.additions / self.dense if self.dense else 0.0

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read."""
        return self.rows * self.row_bytes

    def add(self, other: "LayerStats") -> None:
        """Take in another run's counts."""
        self.spikes += other.spikes
        self.additions += other.additions
        self.dense += other.dense
        self.rows += other.rows
        self.row_bytes = other.row_bytes
        self.seconds += other.seconds


@dataclass(slots=True)
class Stats:
    """All layers of a run."""

    images: int = 0
    layers: dict[str, LayerStats] = field(default_factory=dict)
    """By the name of the layer whose weights they are."""

    @property
    def additions(self) -> dict[str, int]:
        """Layer -> synaptic additions executed, exactly."""
        return {name: layer.additions for name, layer in self.layers.items()}

    @property
    def total(self) -> LayerStats:
        """All layers together."""
        total = LayerStats()
        for layer in self:
            total.add(layer)
        return total

    def add(self, other: "Stats") -> None:
        """Take in another run's counts."""
        self.images += other.images
        for name, layer in other.layers.items():
            self.layers.setdefault(name, LayerStats()).add(layer)

    def __iter__(self) -> Iterator[LayerStats]:
        return iter(self.layers.values())
