"""Reads experiments from YAML and `a.b=value` overrides. Reports all errors at once, with the nearest known keys."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from fedpgp.config.settings import BY_PART, FOR_ALL, Experiment
from fedpgp.config.values import kinds_of, load_yaml, read_value
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean, one_line, redacted

log = logging.getLogger(__name__)

Carry = Callable[[str, str, Mapping[str, Any]], tuple[dict[str, Any], str]]
"""Of the settings of an old method, what a new one keeps, and a text on the others; see `methods.carry`."""

TIED_TO_NAME: dict[str, tuple[str, ...] | None] = {
    "data": ("root", "class_names", "template", "parts"),
    "backbone": ("weights", "weights_key", "activation"),
    "federation.server": None,
}
"""Settings of a section that belong to its `name` (None: all): an override of the name drops them."""


def drop_all(old: str, new: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Keep no setting of a method, for callers that do not know the methods."""
    return {}, ""


def load(config: str, overrides: Sequence[str] = (), carry: Carry = drop_all) -> Experiment:
    """Read an experiment from a YAML file, or a shipped one by its name, and apply `a.b=value` overrides.

    Raises `ConfigError` if the file is missing or not YAML, or settings are invalid (reports all of them).
    """
    return parse(override(read_yaml(config), overrides, config, carry), source=config)


def parse(tree: Mapping[str, Any], source: str = "config") -> Experiment:
    """Validate a nested mapping; errors name the field, the rule, the value and the nearest known keys."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Experiment, source))) from None


def explain(error: ValidationError, model: type[BaseModel], source: str) -> list[str]:
    """Describe each validation error in one line."""
    lines: dict[str, str] = {}  # one for each setting, whatever its types are
    for item in error.errors():
        keys = _without_types(model, item["loc"])
        path = ".".join(str(part) for part in keys)
        if item["type"] == "extra_forbidden":
            known = sorted(_fields_at(model, item["loc"][:-1])) or ["none"]
            hint = did_you_mean(item["loc"][-1], known, f"known keys: {', '.join(known)}", count=2)
            lines[path] = f"{source}: {path}: unknown key; {hint}"
        else:
            what = item["msg"].removeprefix("Value error, ")
            given = item["input"]
            shown = "" if isinstance(given, Mapping | BaseModel) else f" (given: {given!r})"
            if kinds_of(model, keys) == {"text"} and isinstance(given, int | float):
                shown += "; in a file, write it in quotes"
            lines.setdefault(path, f"{source}: {path + ': ' if path else ''}{what}{shown}")
    return list(lines.values())


def read_yaml(config: str, kinds: Sequence[str] = ("experiments",)) -> dict[str, Any]:
    """Read a YAML file, or the first shipped one of that name in the folders `kinds` of `tune_configs` ("": sweeps)."""
    path = Path(config).expanduser()
    shipped = [shipped_configs() / kind / f"{config}.yaml" for kind in kinds]
    found = next((file for file in (path, *shipped) if file.is_file()), None)
    if found is None:
        names = sorted({item.stem for kind in kinds for item in (shipped_configs() / kind).glob("*.yaml")})
        what = "experiment" if kinds == ("experiments",) else "sweep or experiment"
        raise ConfigError(f"{config}: no such file, and no shipped {what} of that name ({', '.join(names)})")
    where = str(path) if found == path else config
    try:
        tree = load_yaml(found.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: a type such as !!int that fails
        raise ConfigError(f"{where}: not readable as YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of sections such as data, method, federation")
    return tree


def is_shipped(config: str) -> bool:
    """Whether `read_yaml` reads a shipped file: by its name, or by its path in a checkout."""
    path = Path(config).expanduser()
    return not path.is_file() or path.resolve().is_relative_to(shipped_configs().resolve())


def shipped_configs() -> Path:
    """Return the folder `tune_configs`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "tune_configs"
    return inside if inside.is_dir() else package.parent / "tune_configs"


def override(
    tree: dict[str, Any], overrides: Sequence[str], source: str = "settings", carry: Carry = drop_all
) -> dict[str, Any]:
    """Apply `a.b=value` overrides, see `assign` and `warn_dropped`; raise `ConfigError` if one cannot be read."""
    warn_repeated(overrides)
    values = dict(read_override(item) for item in overrides)
    warn_dropped(tree, values, source, carry)
    return assign(tree, values, carry)


def read_override(item: str, model: type[BaseModel] = Experiment) -> tuple[str, Any]:
    """Split `a.b=value` into key and value, see `read_value`; raise `ConfigError` if it does not have this form.

    Args:
        model: settings that have the key.
    """
    path, separator, text = item.partition("=")
    if not separator or not all(path.split(".")):
        raise ConfigError(f"override {item!r}: write it as a.b=value, for example federation.rounds=5")
    return path, read_value(item, path.removeprefix("base."), text, model)


def assign(tree: dict[str, Any], values: Mapping[str, Any], carry: Carry = drop_all) -> dict[str, Any]:
    """Set values by their dotted keys, names first; the value of a section is merged into it.

    Another name of data or a backbone drops the settings in `TIED_TO_NAME`, another method those that `carry` drops.
    """
    for path, value in sorted(_merged(values).items(), key=lambda item: not item[0].endswith(".name")):
        keys = path.split(".")
        node = tree
        for key in keys[:-1]:
            child = node.get(key)
            node[key] = dict(child) if isinstance(child, dict) else {}
            node = node[key]
        if path.endswith(".name") and node.get("name", value) != value:
            tied: Iterable[str] | None = TIED_TO_NAME.get(path.removesuffix(".name"), ())
            if path == "method.name":
                tied = node.keys() - carry(str(node["name"]), str(value), node)[0].keys()
            for key in list(node) if tied is None else tied:
                node.pop(key, None)
        node[keys[-1]] = value
    return tree


def _merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the value of a section by those of its keys."""
    flat: dict[str, Any] = {}
    for path, value in values.items():
        section = isinstance(value, Mapping) and "." not in path
        flat |= {f"{path}.{key}": one for key, one in value.items()} if section else {path: value}
    return flat


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten `{"data": {"name": "dtd"}}` to `{"data.name": "dtd"}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def warn_repeated(overrides: Sequence[str]) -> None:
    """Log a warning for each setting that is given more than once; the last one counts."""
    items: dict[str, list[str]] = {}
    for item in overrides:
        items.setdefault(item.partition("=")[0].removeprefix("base."), []).append(redacted(item))
    for *others, last in items.values():
        if earlier := [one for one in others if one != last]:
            log.warning("%s: not used, because %s is given later", ", ".join(earlier), last)


def warn_dropped(tree: Mapping[str, Any], values: Mapping[str, Any], source: str, carry: Carry) -> None:
    """Log a warning for each new name that drops settings of `source`."""
    for name, text in dropped(tree, values, carry).items():
        log.warning("%s: dropped %s of %r", name, text, redacted(source))


def dropped(tree: Mapping[str, Any], values: Mapping[str, Any], carry: Carry) -> dict[str, str]:
    """Describe the settings that `assign` will drop, except defaults, by new name (`method.name=coop`)."""
    values, texts = _merged(values), {}
    for section in ("method", *TIED_TO_NAME):
        given, name = _section(tree, section), values.get(f"{section}.name")
        if name is None or not isinstance(given, Mapping) or given.get("name", name) == name:
            continue
        left = {key: value for key, value in given.items() if f"{section}.{key}" not in values}
        if section == "method":
            _, text = carry(str(given["name"]), str(name), left)
        else:
            defaults = _section(Experiment().model_dump(), section)
            tied = TIED_TO_NAME[section] or left.keys() - {"name"}
            lost = [key for key in left if key in tied and left[key] != defaults.get(key)]
            text = ", ".join(f"{key}={left[key]}" for key in lost)
        if text:
            texts[f"{section}.name={name}"] = redacted(text)
    return texts


def _section(tree: Mapping[str, Any], path: str) -> Any:
    """What is at a dotted path; None: nothing."""
    found: Any = tree
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _without_types(model: type[BaseModel], keys: Sequence[str | int]) -> list[str | int]:
    """Drop the names of types that pydantic adds to the path of a setting with several."""
    kept: list[str | int] = []
    for part in keys:
        if isinstance(part, int) or not (kinds_of(model, kept) - {"other"} or part in (BY_PART, FOR_ALL)):
            kept.append(part)
    return kept


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    for part in path:
        if isinstance(part, int):  # an item of the list whose field was the part before
            continue
        annotation = model.model_fields[part].annotation
        kinds = [kind for kind in (annotation, *_arguments(annotation)) if isinstance(kind, type)]
        found = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _arguments(annotation: Any) -> Iterator[Any]:
    """The types inside a type such as `tuple[PartSettings, ...] | None`."""
    for one in get_args(annotation):
        yield one
        yield from _arguments(one)
