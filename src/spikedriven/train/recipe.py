"""Reading a recipe: YAML and `key=value`, every key known, every value of its type."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from spikedriven.errors import ConfigError, in_words, kinds_of
from spikedriven.train.config import Recipe


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
        ConfigError: There is no such recipe, a key is unknown, or a value cannot work or would
            do nothing.
    """
    recipe = _read(text_of(name), overrides, str(name))
    _refuse_idle(recipe, {override.partition("=")[0] for override in overrides}, str(name))
    return _live(recipe)


def parse_recipe(text: str, overrides: Sequence[str] = (), *, name: str = "the text") -> Recipe:
    """Check a run's text as `load_recipe` does; keys that it lacks take their defaults.

    So do values that do nothing: an older version's run may hold some.

    Raises:
        ConfigError: A key is unknown, or a value cannot work.
    """
    return _live(_read(text, overrides, name))


def _read(text: str, overrides: Sequence[str], name: str) -> Recipe:
    try:
        content = yaml.load(text, _OnceLoader)
        if isinstance(content, Mapping):
            return _checked(content, overrides, name)
    except yaml.YAMLError as error:
        # PyYAML knows the text alone; whose it is stands at the front.
        told = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(
            f"{name} is not YAML ({told}); it must be a mapping of keys: correct that line"
        ) from error
    except RecursionError as error:
        raise ConfigError(
            f"{name} is nested without end; a recipe must have sections and in them keys: start "
            "from a packaged one"
        ) from error
    raise ConfigError(f"{name} is no mapping; a recipe must have keys: start with model:")


def _checked(content: Mapping[str, Any], overrides: Sequence[str], name: str) -> Recipe:
    """Return the recipe; a mistake that stands in the text, not in an override, names it."""
    try:
        return _typed(content, overrides)
    except ConfigError as error:
        try:
            _typed(content, ())
        except ConfigError as alone:
            if str(alone) == str(error):
                raise ConfigError(f"in {name}, {error}") from error
        raise


# Settings that do something only where one of their switches is on.
_SWITCHES = (
    (("distill.teacher",), ("distill.weights", "distill.weight", "distill.hard",
                            "distill.temperature")),
    (("loss.mixup", "loss.cutmix"), ("loss.mixup_epochs", "loss.mix_probability")),
    (("loss.mixup",), ("loss.mix_switch",)),
    (("loss.cutmix",), ("loss.mix_switch",)),
    (("loss.energy_budget",), ("loss.energy_part", "loss.energy_weight")),
    (("schedule.warmup_epochs",), ("schedule.warmup_lr",)),
)  # fmt: skip
# Those that do something only where a switch is off.
_UNDONE = (("distill.hard", ("distill.temperature",)),)


def _idle(recipe: Recipe) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Yield every key whose value does nothing and is not its default.

    With it come its switches, in words beside or without which of them, and the cure.
    """
    for switches, keys in _SWITCHES:
        without = f"without {' or '.join(switches)}"
        if all(attrgetter(switch)(recipe) in (None, 0) for switch in switches):
            for key in _changed(recipe, keys):
                yield key, switches, without, f"set {switches[0]} too, or leave {key} out"
    for switch, keys in _UNDONE:
        if attrgetter(switch)(recipe):
            for key in _changed(recipe, keys):
                yield key, (switch,), f"beside {switch}", "leave one of them out"


def _changed(recipe: Recipe, keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if attrgetter(key)(recipe) != _default(key)]


def _default(key: str) -> Any:
    section, _, name = key.partition(".")
    return next(x.default for x in dataclasses.fields(_hint(section)) if x.name == name)


def _refuse_idle(recipe: Recipe, overrides: set[str], name: str) -> None:
    for key, switches, where, cure in _idle(recipe):
        # Who switches off what a recipe has on need not undo the recipe's settings of it.
        if key in overrides or overrides.isdisjoint(switches):
            place = "" if key in overrides else f"in {name}, "
            raise ConfigError(
                f"{place}{key} is {attrgetter(key)(recipe)!r} and does nothing {where}; every "
                f"setting must do something: {cure}"
            )


def _live(recipe: Recipe) -> Recipe:
    """Return the recipe with the default of everything that does nothing."""
    for key, *_ in _idle(recipe):
        section, _, name = key.partition(".")
        part = dataclasses.replace(getattr(recipe, section), **{name: _default(key)})
        recipe = dataclasses.replace(recipe, **{section: part})
    return recipe


def text_of(name: str | Path) -> str:
    """Return the text of a packaged recipe, or of a YAML file.

    Raises:
        ConfigError: There is no such recipe, or the file cannot be read.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(
                f"{path} cannot be read ({reason}); it must be a recipe: check the path"
            ) from error
    if str(name) in list_recipes():
        return (files("spikedriven.train") / "recipes" / f"{name}.yaml").read_text("utf-8")
    close = difflib.get_close_matches(str(name), list_recipes(), n=1)
    cure = f"did you mean {close[0]}?" if close else "choose one of them"
    raise ConfigError(
        f"there is no recipe {str(name)!r}; the recipes are {', '.join(list_recipes())}: "
        f"{cure}, or give the path of a .yaml file"
    )


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice: YAML would silently forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be one word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _typed(content: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    known = _keys(Recipe)
    sections = {key.rpartition(".")[0] for key in known} - {""}
    given = _flat(content, sections)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(
                f"{override!r} is no setting; a setting must read key=value: "
                "write for example schedule.epochs=3"
            )
        given[key] = value
    for key, value in given.items():
        if key in sections:
            first = next(name for name in known if name.startswith(f"{key}."))
            raise ConfigError(
                f"{key} is {_shown(value)}; it is a section and must have keys of its own: set for "
                f"example {first}"
            )
        if key not in known:
            raise ConfigError(
                f"{key!r} is no key of a recipe; its keys are those of the packaged recipes: "
                f"{_nearest_key(key, known)}"
            )
        if isinstance(value, Mapping | list):
            raise ConfigError(
                f"{key} is {_shown(value)}; it must be {in_words(_hint(key))}: "
                "give a value of that kind"
            )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Recipe)
    arguments = [f"--{key}={_text(key, value)}" for key, value in given.items()]
    try:
        values = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise _explained(error, given) from error
    recipe: Recipe = _built(Recipe, values)
    return recipe


def _built(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    return kind(
        **{
            name: _built(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def _explained(error: ArgumentError, given: Mapping[str, Any]) -> ConfigError:
    message = " ".join(str(error).split())
    _, required, missing = message.partition("required: ")
    if required:
        are, them = ("are", "them") if "," in missing else ("is", "it")
        return ConfigError(f"{missing} {are} missing; a recipe must have {them}: add {them}")
    for key, value in given.items():
        if f'"{key}"' in message or f"--{key}" in message or f"'{key}'" in message:
            or_null = ", or null" if type(None) in kinds_of(_hint(key)) else ""
            return ConfigError(
                f"{key} is {value!r}; it must be {in_words(_hint(key))}: give a value of that kind"
                + or_null
            )
    return ConfigError(f"{message}; every key must have a value: add it")


def _hint(key: str) -> Any:
    kind: Any = Recipe
    for part in key.split("."):
        kind = get_type_hints(kind)[part]
    return kind


def _keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            keys += _keys(hint, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _shown(value: object) -> str:
    # A list or a mapping may, by YAML's aliases, be too long to show.
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _flat(content: Mapping[str, Any], sections: set[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        # What is no section is refused by its own name, however much it holds.
        is_section = name in sections and isinstance(value, Mapping)
        inner = _flat(value, sections, f"{name}.") if is_section else {name: value}
        if twice := min(inner.keys() & flat.keys(), default=None):
            raise ConfigError(
                f"{twice!r} stands twice, in its section and with dots; a key must stand once: "
                "remove one of them"
            )
        flat |= inner
    return flat


# How YAML writes what others, and Python, write without the dot.
_NO_NUMBERS = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        return yaml.safe_dump(value).removesuffix("...\n").strip()
    return _NO_NUMBERS.get(value.lower(), value) if float in kinds_of(_hint(key)) else value


def _nearest_key(key: str, known: Sequence[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    close = close or [
        leaves[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1)
    ]
    if close:
        return f"did you mean {close[0]}?"
    section = key.rpartition(".")[0]
    inside = [name for name in known if name.rpartition(".")[0] == section]
    around = [field.name for field in dataclasses.fields(Recipe)]
    return f"choose one of {', '.join((section and inside) or around)}"
