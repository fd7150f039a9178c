"""Tables of firing rates: the packaged ones, and anyone's from a file."""

import csv
import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spikedriven.energy.shape import Network
from spikedriven.errors import DataError
from spikedriven.models.official import released_hooks
from spikedriven.models.sdt import SDTConfig

FOLDER = Path(__file__).parent / "tables"

# The paper's Table S1 names a tensor by module and symbol. Its V_S, Q_S, K_S are the released
# code's query, key, value.
_PAPER_STEM = {
    "Conv1": "stem.image",
    "Conv2": "stem.second",
    "Conv3": "stem.third",
    "Conv4": "stem.fourth_lif",
}
_PAPER_BLOCK = {
    "SDSA input": "attention.fire",
    "V_S": "attention.query",
    "Q_S": "attention.key",
    "K_S": "attention.value",
    "g(Q_S,K_S)": "attention.gate",
    "V_hat (SDSA out)": "attention.masked",
    "MLP layer1": "mlp.fire",
    "MLP layer2": "mlp.expand",
}
_HOOKS = released_hooks(SDTConfig(depth=1, width=8, num_classes=1))
_OPTIONAL = ("gate", "agreement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Firing rates by layer and step, without the weights that made them."""

    layers: dict[str, tuple[float, ...]]
    """Neurons, as `record_spikes` names them -> rate in [0, 1] at every step; one number stands for
    all steps. `blocks.N.attention.agreement`, where it is known, is the share of sites at which key
    and value agree."""
    model: str | None = None
    """Name of the model they were measured on, where the file says so."""
    image_size: int | None = None
    """Side of its images in pixels, where the file says so."""
    source: str = ""
    """Where they come from, in words."""

    num_steps: int | None = None
    """Time steps T, or None where there are averages only."""

    def mean(self, name: str) -> float:
        """Return a layer's rate, averaged over steps."""
        rates = self.layers[name]
        return math.fsum(rates) / len(rates)


def list_rates() -> list[str]:
    """Return the names of the packaged tables.

    Example:
        >>> list_rates()[0]
        'paper_sdt_8_512_224'
    """
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


def load_rates(name: str | Path) -> Rates:
    """Read a table of firing rates.

    Args:
        name: One of `list_rates()`, or a CSV file. A column `layer` has our names, or `hook` the
            released code's, or `module` and `tensor` the paper's (Table S1); the columns T1, T2,
            ... the rate at each step, or else `avg` or `rate` their mean. Lines `# model: ...`,
            `# image_size: ...` and `# source: ...` above the columns are optional.

    Raises:
        DataError: The file is missing or no such table, a rate is not in [0, 1], or a line or a
            column is not what it must be.
    """
    path = FOLDER / f"{name}.csv" if str(name) in list_rates() else Path(name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else "not text"
        raise DataError(
            f"the rates {str(name)!r} cannot be read ({reason}); they must be a CSV file or one "
            f"of {', '.join(list_rates())}: check the path"
        ) from error
    notes = {
        match[1]: match[2].strip()
        for line in lines
        if (match := re.fullmatch(r"#\s*(\w+):(.*)", line))
    }
    size = notes.get("image_size")
    if size is not None and not re.fullmatch(r"[1-9][0-9]{0,8}", size):
        raise DataError(
            f"{path} says # image_size: {size}; it must be the side of a square image, a whole "
            "number of pixels such as 224: correct it"
        )
    table = [line for line in lines if line.strip() and not line.startswith("#")]
    try:
        rows = list(csv.reader(table, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{path} cannot be read as CSV ({error}); it must have one short field for each "
            "column: correct it"
        ) from error
    columns = rows[0] if rows else []
    timed = [c for c in columns if re.fullmatch(r"T\d+", c)]
    if timed != [f"T{t}" for t in range(1, len(timed) + 1)]:
        raise DataError(
            f"{path} has the steps {', '.join(timed)}; they must be T1, T2, ... in order, each "
            "once: correct its first line"
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"{path} names a column twice; each must stand once: remove one")
    steps = timed or [c for c in columns if c in ("avg", "rate")][:1]
    keys = next(
        (key for key in (["layer"], ["hook"], ["module", "tensor"]) if set(key) <= set(columns)),
        None,
    )
    if keys is None or not steps:
        raise DataError(
            f"{path} has the columns {', '.join(columns) or 'none'}; a table of rates must have "
            "layer (or hook, or module and tensor) and T1, T2, ... (or rate): correct its first "
            "line"
        )
    layers: dict[str, tuple[float, ...]] = {}
    for cells in rows[1:]:
        if len(cells) > len(columns):
            raise DataError(
                f"{path} has {len(cells)} fields in the line of {','.join(cells[:2])}; it must "
                f"have at most {len(columns)}, one for each column: correct it"
            )
        row = dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False))
        shown = ",".join(row[key] for key in keys)
        layer = _name([row[key] for key in keys])
        if layer in layers:
            raise DataError(f"{path} names {shown} twice; it must stand once: remove one line")
        layers[layer] = tuple(_rate(path, shown, row[step]) for step in steps)
    if not layers:
        raise DataError(f"{path} has no rates; it must have a line for every layer: fill it")
    return Rates(
        layers=layers,
        model=notes.get("model"),
        image_size=None if size is None else int(size),
        num_steps=len(timed) or None,
        source=notes.get("source", str(path)),
    )


def check_rates(rates: Rates, network: Network) -> None:
    """Refuse rates that are not this network's.

    Raises:
        DataError: A layer is missing or foreign.
    """
    depth = network.config.depth
    known = [*network.neurons, *(f"blocks.{b}.attention.masked" for b in range(depth))]
    optional = {f"blocks.{b}.attention.{name}" for b in range(depth) for name in _OPTIONAL}
    missing = [name for name in known if name not in rates.layers and name not in optional]
    if missing:
        raise DataError(
            f"the table of rates lacks {missing[0]} ({len(missing)} such); it must have every "
            f"layer of neurons of a network of depth {depth}: add it, or choose another model"
        )
    foreign = sorted(rates.layers.keys() - set(known) - optional)
    if foreign:
        close = difflib.get_close_matches(foreign[0], known, n=1)
        raise DataError(
            f"the table of rates has the foreign layer {foreign[0]} ({len(foreign)} such); it must "
            f"have those of a network of depth {depth}: "
            + (f"did you mean {close[0]}?" if close else "remove it, or choose another model")
        )


def _rate(path: Path, layer: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1:
        raise DataError(
            f"{path} gives {layer} the rate {text or 'nothing'}; a rate must lie in [0, 1]: "
            "correct it"
        )
    return rate


def _name(given: Sequence[str]) -> str:
    """Return our name of a layer that another naming scheme may have named."""
    if len(given) == 2:
        module, tensor = given
        if module == "SPS":
            return _PAPER_STEM.get(tensor, f"{module},{tensor}")
        if module == "Head":
            return "head_lif"
        block = re.fullmatch(r"B(\d+)", module)
        if block and tensor in _PAPER_BLOCK:
            return f"blocks.{int(block[1]) - 1}.{_PAPER_BLOCK[tensor]}"
        return f"{module},{tensor}"
    (name,) = given
    hook = re.fullmatch(r"(MS_(?:SSA|MLP)_Conv)(\d+)(_\w+)", name)
    if hook and hook[3] == "_kv_before":
        return f"blocks.{hook[2]}.attention.agreement"
    first = f"{hook[1]}0{hook[3]}" if hook else name
    ours = _HOOKS.get(first)
    if ours is None:
        return name
    return ours.replace("blocks.0.", f"blocks.{hook[2]}.") if hook else ours
