"""`a.b=value` on the command line: read, and put in its place in a nested mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fedpgp.core.errors import ConfigError

TIED_TO_NAME: dict[str, tuple[str, ...] | None] = {
    "method": None,
    "data": ("root", "class_names", "template"),
    "backbone": ("weights", "activation"),
}
"""Settings of a section that mean nothing under another `name`: an override of the name drops them. None: all."""


def override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A nested mapping with `a.b=value` put in place, see `assign`.

    Raises:
        ConfigError: something that is not of this form.
    """
    return assign(tree, dict(read_override(item) for item in overrides))


def read_override(item: str) -> tuple[str, Any]:
    """`a.b=value` as key and value.

    Raises:
        ConfigError: it is not of this form.
    """
    path, separator, text = item.partition("=")
    if not separator or not all(path.split(".")):
        raise ConfigError(f"override {item!r}: write it as a.b=value, for example federation.rounds=5")
    try:
        return path, yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        raise ConfigError(f"override {item!r}: the value is not readable as YAML") from None


def assign(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested mapping with values put in place by their dotted keys; names first, see `TIED_TO_NAME`."""
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
