"""The published sizes in timm's registry: import this module, then `timm.create_model(name)`.

timm's names for what it sets: `num_classes`, and `in_chans` for `in_channels`; any other field of
`SDTConfig` goes by its own name. The models classify; timm's feature extraction is not offered.
"""

from typing import Any

from timm.models import register_model

from spikedriven.errors import ConfigError
from spikedriven.models.registry import create_model, find_variant, list_models
from spikedriven.models.sdt import SpikeDrivenTransformer

__all__ = []  # type: list[str]  # timm adds every registered name


# How the released code shows the test images of each task.
_EVALUATION: dict[str, dict[str, Any]] = {
    "ImageNet-1K": {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.95,
    },
    "CIFAR-10": {
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    },
}


def _as_stored(channels: int) -> dict[str, Any]:
    return {"mean": (0.0,) * channels, "std": (1.0,) * channels, "crop_pct": 1.0}


def _register(name: str) -> None:
    def build(
        pretrained: bool = False,
        *,
        num_classes: int | None = None,
        in_chans: int | None = None,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **fields: Any,
    ) -> SpikeDrivenTransformer:
        if pretrained or pretrained_cfg or pretrained_cfg_overlay or cache_dir:
            raise ConfigError(
                f"pretrained weights were asked for and timm has none of {name}; they must come "
                "from a file: use spikedriven.load_official, or fill a model made without"
            )
        given = {"num_classes": num_classes, "in_channels": in_chans}
        fields |= {field: value for field, value in given.items() if value is not None}
        model = create_model(name, **fields)
        variant, config = find_variant(name), model.config
        size = variant.image_size
        model.pretrained_cfg = {  # type: ignore[assignment]  # for timm.data.resolve_data_config
            "architecture": name,
            "num_classes": config.num_classes,
            "input_size": (config.in_channels, size, size),
            **_EVALUATION.get(variant.task, _as_stored(config.in_channels)),
        }
        model.default_cfg = model.pretrained_cfg
        model.num_classes = config.num_classes  # type: ignore[assignment]
        return model

    build.__name__, build.__module__ = name, __name__
    build.__doc__ = f"Build `{name}`: `spikedriven.create_model` with timm's names."
    globals()[name] = build
    register_model(build)


for _name in list_models():
    _register(_name)
