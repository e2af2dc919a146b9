"""Command-line overrides: reads `a.b=value` and sets the values in a nested mapping."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from fedpgp.config.settings import BackboneSettings, DataSettings
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import redacted

log = logging.getLogger(__name__)

Defaults = Callable[[str], Mapping[str, Any]]
"""The default settings of a method by its name; empty if it is unknown."""

TIED_TO_NAME: dict[str, tuple[str, ...] | None] = {
    "method": None,
    "data": ("root", "class_names", "template"),
    "backbone": ("weights", "activation"),
}
"""Settings of a section that belong to its `name`: an override of the name drops them. None: all."""


def override(
    tree: dict[str, Any],
    overrides: Sequence[str],
    source: str = "settings",
    method_defaults: Defaults = lambda name: {},
) -> dict[str, Any]:
    """Apply `a.b=value` overrides, see `assign` and `warn_dropped`; raise `ConfigError` if one cannot be read."""
    values = dict(read_override(item) for item in overrides)
    warn_dropped(tree, values, source, method_defaults)
    return assign(tree, values)


def read_override(item: str) -> tuple[str, Any]:
    """Split `a.b=value` into key and value; raise `ConfigError` if it does not have this form."""
    path, separator, text = item.partition("=")
    if not separator or not all(path.split(".")):
        raise ConfigError(f"override {item!r}: write it as a.b=value, for example federation.rounds=5")
    try:
        return path, yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        raise ConfigError(f"override {item!r}: the value is not readable as YAML") from None


def assign(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set values by their dotted keys, names first: a new name drops the settings in `TIED_TO_NAME`."""
    for path, value in sorted(values.items(), key=lambda item: not item[0].endswith(".name")):
        keys = path.split(".")
        node = tree
        for key in keys[:-1]:
            child = node.get(key)
            node[key] = dict(child) if isinstance(child, dict) else {}
            node = node[key]
        if path.endswith(".name") and node.get("name", value) != value:
            tied = TIED_TO_NAME.get(path.removesuffix(".name"), ())
            for key in tied if tied is not None else tuple(node):
                node.pop(key, None)
        node[keys[-1]] = value
    return tree


def warn_dropped(tree: Mapping[str, Any], values: Mapping[str, Any], source: str, method_defaults: Defaults) -> None:
    """Log a warning for each new name, with the settings that `assign` will drop and that are not defaults.

    Args:
        source: where the settings come from, for the message.
    """
    for section, tied in TIED_TO_NAME.items():
        given, name = tree.get(section), values.get(f"{section}.name")
        if name is None or not isinstance(given, Mapping) or given.get("name", name) == name:
            continue
        if section == "method":
            defaults = method_defaults(str(given["name"]))
        else:
            fields = (DataSettings if section == "data" else BackboneSettings).model_fields
            defaults = {key: field.default for key, field in fields.items()}
        dropped = [
            f"{section}.{key}={given[key]}"
            for key in (given if tied is None else tied)
            if key in given and key != "name" and f"{section}.{key}" not in values
            if key not in defaults or given[key] != defaults[key]
        ]
        if dropped:
            log.warning("%s", redacted(f"{section}.name={name}: dropped {', '.join(dropped)} of {source!r}"))
