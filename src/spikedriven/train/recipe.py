"""A recipe says everything about a training run: typed, complete, and refusing nonsense."""

import dataclasses
import difflib
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from spikedriven.data import DataConfig
from spikedriven.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A named variant, and the fields of its config that differ."""

    name: str
    """One of `spikedriven.list_models()`."""
    depth: int | None = None
    width: int | None = None
    num_steps: int | None = None
    mlp_ratio: float | None = None
    num_heads: int | None = None
    stem_pool: str | None = None
    neuron: str | None = None
    dvs_dilation: bool | None = None

    def overrides(self) -> dict[str, Any]:
        """Return the fields that were set."""
        given = dataclasses.asdict(self)
        del given["name"]
        return {key: value for key, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights move."""

    name: str = "adamw"
    """`adamw`, or timm's `lamb`."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    weight_decay: float = 0.05
    """Applied to weights, never to biases and other vectors."""

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "lamb"):
            raise ConfigError(
                f"optimizer.name is {self.name!r}; it must be adamw or lamb: choose one"
            )
        if self.lr <= 0:
            raise ConfigError(f"optimizer.lr is {self.lr}; it must be above 0: 1e-3 is usual")
        if self.weight_decay < 0:
            raise ConfigError(
                f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0: "
                "use 0 for none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over epochs: linear warm-up, cosine, then flat; set once an epoch."""

    epochs: int
    """Epochs of warm-up and cosine together."""
    warmup_epochs: int = 0
    warmup_lr: float = 1e-6
    """Rate of the first warm-up epoch."""
    min_lr: float = 1e-5
    """Where the cosine ends."""
    cooldown_epochs: int = 0
    """Further epochs at `min_lr`."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ConfigError(
                f"schedule.epochs is {self.epochs}; it must be at least 1: give a whole number"
            )
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "cooldown_epochs"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"schedule.{name} is {getattr(self, name)}; it must be at least 0: raise it"
                )
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"schedule.warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs; warm-up "
                "must end before they do: shorten it"
            )

    @property
    def total_epochs(self) -> int:
        """Epochs that are trained."""
        return self.epochs + self.cooldown_epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is minimised."""

    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    mixup_epochs: int | None = None
    """Epochs with mixup, from the first; None means all."""
    tet_weight: float | None = None
    """Temporal efficient training: cross-entropy at every step, with this weight on a pull of all
    logits towards 1. None takes the cross-entropy of the mean over steps."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "tet_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"loss.{name} is {value}; it must lie in [0, 1): use 0 for none")
        if self.mixup < 0:
            raise ConfigError(f"loss.mixup is {self.mixup}; it must be at least 0: use 0 for none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Where and how precisely: passed to Lightning's Trainer."""

    accelerator: str = "auto"
    """`auto`, `cpu` or `gpu`."""
    devices: int = 1
    precision: str = "32-true"
    """`32-true`, `bf16-mixed` or `16-mixed`."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None does not clip."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("accelerator", ("auto", "cpu", "gpu")),
            ("precision", ("32-true", "bf16-mixed", "16-mixed")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"trainer.{name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(choices)}: choose one"
                )
        if self.devices < 1:
            raise ConfigError(
                f"trainer.devices is {self.devices}; it must be at least 1: give a whole number"
            )
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ConfigError(
                f"trainer.gradient_clip is {self.gradient_clip}; it must be above 0: "
                "leave it out for none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training run."""

    model: ModelChoice
    data: DataConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    seed: int = 0
    """Seed of the weights, of the order of the data and of its variation."""
    evaluate: str = "last"
    """Weights whose test accuracy is the run's: `last`, or `best` on the validation split."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0: give a whole number")
        if self.evaluate not in ("last", "best"):
            raise ConfigError(f"evaluate is {self.evaluate!r}; it must be last or best: choose one")
        if self.evaluate == "best" and self.data.validation_fraction == 0:
            raise ConfigError(
                "evaluate is best without a validation split to choose by; the test split never "
                "chooses: raise data.validation_fraction"
            )

    def to_yaml(self) -> str:
        """Return the recipe, complete, as `load_recipe` reads it."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def list_recipes() -> list[str]:
    """Return the names of the packaged recipes."""
    folder = files("spikedriven.train") / "recipes"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check every key and value of it.

    Args:
        name: A packaged recipe, or the path of a YAML file.
        overrides: `key=value` with dotted keys, e.g. `schedule.epochs=3`.

    Raises:
        ConfigError: There is no such recipe, a key is unknown, or a value cannot work.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}); it must be a recipe: check the path"
            ) from error
    elif str(name) in list_recipes():
        text = (files("spikedriven.train") / "recipes" / f"{name}.yaml").read_text("utf-8")
    else:
        raise ConfigError(
            f"there is no recipe {str(name)!r}; the recipes are {', '.join(list_recipes())}: "
            f"{_nearest(str(name), list_recipes())}, or give the path of a .yaml file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{name} is not YAML ({str(error).splitlines()[0]}); it must be a mapping of keys: "
            "correct that line"
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{name} is no mapping; a recipe must have keys: start with model:")
    return _typed(content, overrides)


def _typed(content: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    known = _keys(Recipe)
    given = _flat(content, known)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(
                f"{override!r} is no setting; a setting must read key=value: "
                "write for example schedule.epochs=3"
            )
        given[key] = value
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{key!r} is no key of a recipe; its keys are those of the packaged recipes: "
                f"{_nearest(key, known)}"
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    arguments = [f"--{key}={_text(value)}" for key, value in given.items()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Recipe(**parser.instantiate_classes(parser.parse_args(arguments)).as_dict())
    except ArgumentError as error:
        raise _explained(error, given) from error


def _explained(error: ArgumentError, given: Mapping[str, Any]) -> ConfigError:
    for cause in (error.__cause__, error.__context__):
        if isinstance(cause, ConfigError):
            return cause
    message = str(error)
    for key, value in given.items():
        if f'"{key}"' in message or f"--{key}" in message or f"'{key}'" in message:
            return ConfigError(
                f"{key} is {value!r}; it must be {_wanted(key)}: give a value of that kind"
            )
    return ConfigError(f"{' '.join(message.split())}; every key must have a value: add it")


def _wanted(key: str) -> str:
    kind: Any = Recipe
    for part in key.split("."):
        kind = get_type_hints(kind)[part]
    return getattr(kind, "__name__", str(kind)).replace(" | None", " or nothing")


def _keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            keys += _keys(hint, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _flat(content: Mapping[str, Any], known: Sequence[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, known, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: object) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value).removesuffix("...\n").strip()


def _nearest(name: str, known: Sequence[str]) -> str:
    leaves = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    close = close or [
        leaves[leaf] for leaf in difflib.get_close_matches(name.rpartition(".")[2], leaves, n=1)
    ]
    return f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
