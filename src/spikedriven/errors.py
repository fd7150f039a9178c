"""Everything that can go wrong for a user, in one family.

A message is one sentence: what is, what must be, what to do. The command line prints it and exits
with code 2; nothing else in the package catches it.
"""

import math
from typing import Any, get_args, get_type_hints


class SpikeDrivenError(Exception):
    """Base of every error that this package raises on purpose."""

    of_this_process = False
    """Whether, of several processes, this one alone met it; else the first speaks for all."""


class ConfigError(SpikeDrivenError):
    """A setting is unknown or has a value that cannot work."""


class ShapeError(SpikeDrivenError):
    """A tensor has the wrong rank, size or content for the place it was given to."""


class CheckpointError(SpikeDrivenError):
    """A file of weights is damaged, hostile, or belongs to another network."""


class DataError(SpikeDrivenError):
    """A dataset or an image is missing, unreadable, or contradicts its description."""


class BackendError(SpikeDrivenError):
    """A device or an optional package that was asked for is not there."""


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "nothing",
}


def kinds_of(hint: Any) -> tuple[type, ...]:
    """Return the types that a field's hint names: `int | None` names two."""
    return get_args(hint) or (hint,)


def in_words(hint: Any) -> str:
    """Say what a value must be, by its type hint: `int | None` is a whole number or nothing."""
    return " or ".join(_KINDS.get(kind, kind.__name__) for kind in kinds_of(hint))


def check_types(config: object, section: str = "") -> None:
    """Refuse a value that is not of the type its field says; a whole number may stand for a float.

    Args:
        config: A dataclass, with any of bool, int, float, str, None or other classes in its fields.
        section: Where its fields stand in a recipe, with the dot: `data.`.

    Raises:
        ConfigError: A value is of another type, or a number that is not finite.
    """
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = kinds_of(hint)
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if isinstance(value, bool):  # which Python takes for a whole number
            fits = bool in kinds
        elif isinstance(value, float):
            fits = fits and math.isfinite(value)
        if not fits:
            raise ConfigError(
                f"{section}{name} is {value!r}, of type {type(value).__name__}; it must be "
                f"{in_words(hint)}: convert it"
            )
