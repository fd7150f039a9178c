"""What one operation costs: named tables, each with its source. Joules come from here alone."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from spikedriven.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Energy of single operations in picojoules, for one technology and one precision."""

    name: str
    citation: str
    """Where the figures were printed."""
    node_nm: float
    """Technology node in nanometres."""
    precision: str
    """Number format of weights and membranes, in words."""
    addition: float
    """One addition into a membrane or an accumulator, at its width; also one comparison, which is a
    subtraction that keeps the sign."""
    multiplication: float
    """One multiplication, without the addition that follows it."""
    logic: float
    """One AND or OR of two bits."""
    weight_read: float
    """Reading one weight."""
    membrane_access: float
    """Reading or writing one membrane, or one number of the membrane stream."""
    spike_access: float
    """Reading or writing one spike, one bit."""
    activation_access: float
    """Reading or writing one activation of the same-shape artificial network, or one pixel."""

    @property
    def accumulation(self) -> float:
        """One multiplication and the addition of its result: the paper's E_MAC."""
        return self.multiplication + self.addition


_HOROWITZ = "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014"
_SZE = "V. Sze et al., Efficient processing of deep neural networks, Proc. IEEE 105(12), 2017"

# The memory hierarchy behind every table: weights lie in banks of 1 MB, of which 64 bits cost
# 100 pJ; membranes, spikes and activations pass through buffers of 32 KB, 64 bits for 20 pJ
# (Horowitz). Words are read whole, so that a bit costs its share. No DRAM: the network stays put.
_WEIGHT_BIT, _STATE_BIT = 100 / 64, 20 / 64
# A gate of two bits: the eighth part of an 8-bit addition bounds it from above.
_LOGIC = 0.03 / 8


def _at_45_nm(
    name: str, citation: str, precision: str, addition: float, multiplication: float,
    *, weight_bits: int, membrane_bits: int, activation_bits: int,
) -> Costs:  # fmt: skip
    return Costs(
        name=name,
        citation=citation,
        node_nm=45,
        precision=precision,
        addition=addition,
        multiplication=multiplication,
        logic=_LOGIC,
        weight_read=weight_bits * _WEIGHT_BIT,
        membrane_access=membrane_bits * _STATE_BIT,
        spike_access=_STATE_BIT,
        activation_access=activation_bits * _STATE_BIT,
    )


TABLES = {
    table.name: table
    for table in (
        # 4.6 and 0.9 pJ are the paper's E_MAC and E_AC.
        _at_45_nm(
            "float32", _HOROWITZ, "float32", 0.9, 3.7,
            weight_bits=32, membrane_bits=32, activation_bits=32,
        ),
        # A sum is wider than its terms: what is added to a membrane costs the membrane's width.
        # Horowitz prints 8 and 32 bits. The addition of 16 is Sze's; the multiplication of 16 is
        # four times that of 8, whose area it has.
        _at_45_nm(
            "int16", f"{_HOROWITZ}; multiplication: 4 x 8 bits", "int16, sums int32", 0.1, 0.8,
            weight_bits=16, membrane_bits=32, activation_bits=16,
        ),
        _at_45_nm(
            "int8", f"{_HOROWITZ}; addition: {_SZE}", "int8, sums int16", 0.05, 0.2,
            weight_bits=8, membrane_bits=16, activation_bits=8,
        ),
    )
}  # fmt: skip
"""Name -> table: 45 nm, 0.9 V."""

MOST = 1e12
"""The highest price in pJ, one joule; a higher one is a slip, and its sums may not be finite."""
LONGEST = 40
"""Characters of a wrong entry that are shown."""
_WORDS = ("name", "citation", "precision")


def load_costs(name: str | Path) -> Costs:
    """Return a named table, or read one from a file.

    Args:
        name: One of `TABLES`, or a TOML file with the fields of `Costs`.

    Raises:
        ConfigError: There is no such table or file, or a field is missing, foreign or not a cost.
    """
    if str(name) in TABLES:
        return TABLES[str(name)]
    path = Path(name)
    if path.suffix != ".toml":
        raise ConfigError(
            f"there is no cost table {str(name)!r}; it must be one of {', '.join(TABLES)}, or a "
            "file that ends in .toml: choose one"
        )
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"the cost table {path} cannot be read ({reason}); it must be a TOML file: correct it"
        ) from error
    return _checked(path, entries)


def _checked(path: Path, entries: dict[str, object]) -> Costs:
    known = list(Costs.__dataclass_fields__)
    for field in known:
        value = entries.get(field)
        if field in _WORDS:
            if not isinstance(value, str) or not value.strip():
                raise ConfigError(
                    f"the cost table {path} has no {field}; a table must say "
                    f'{", ".join(_WORDS)}: add {field} = "..."'
                )
        elif (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST
        ):
            raise ConfigError(
                f"the cost table {path} gives {field} = {_short(value)}; it must be a number from "
                f"0 to {MOST:g} (pJ; nm for the node): correct it"
            )
    foreign = sorted(entries.keys() - set(known))
    if foreign:
        raise ConfigError(
            f"the cost table {path} has the foreign field {foreign[0]!r}; the fields are "
            f"{', '.join(known)}: remove it"
        )
    return Costs(**entries)  # type: ignore[arg-type]


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."
