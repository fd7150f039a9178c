"""Names to models."""

import difflib
from dataclasses import fields, replace

from spikedriven.errors import ConfigError
from spikedriven.models.sdt import SDTConfig, SpikeDrivenTransformer
from spikedriven.models.variants import VARIANTS, Variant


def list_models() -> list[str]:
    """Return the names that `create_model` knows.

    Example:
        >>> list_models()[0]
        'sdt_8_384'
    """
    return list(VARIANTS)


def create_model(name: str, **config_fields: object) -> SpikeDrivenTransformer:
    """Build a model with fresh weights.

    Args:
        name: One of `list_models()`.
        **config_fields: Fields of `SDTConfig` that differ from the named variant.

    Returns:
        The model, in training mode.

    Raises:
        ConfigError: The name or a field is unknown, or a value cannot work.

    Example:
        >>> create_model("sdt_tiny", num_classes=7).config.num_classes
        7
    """
    variant = find_variant(name)
    known = [field.name for field in fields(SDTConfig)]
    for field in config_fields:
        if field not in known:
            raise ConfigError(
                f"{field!r} is no field of a model; the fields are {', '.join(known)}"
                f"{_nearest(field, known)}"
            )
    config = replace(variant.config, **config_fields)  # type: ignore[arg-type]
    return SpikeDrivenTransformer(config)


def find_variant(name: str) -> Variant:
    """Return a published size and what its paper printed about it.

    Raises:
        ConfigError: The name is unknown.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise ConfigError(
            f"there is no model {name!r}; the models are {', '.join(VARIANTS)}"
            f"{_nearest(str(name), list(VARIANTS))}"
        )
    return VARIANTS[name]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]}?" if close else ": choose one of them"
