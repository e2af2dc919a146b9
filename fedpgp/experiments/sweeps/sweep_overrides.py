"""Apply the overrides of a command line (`a.b=value`) to the mapping of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedpgp import config, methods
from fedpgp.config import Settings, leaves
from fedpgp.config.reading import read_override, warn_dropped, warn_repeated
from fedpgp.core.errors import ConfigError
from fedpgp.experiments.sweeps.search_space import FOLD_KEYS, WHEN, is_term, leaves_of


def apply(
    tree: dict[str, Any], overrides: Sequence[str], source: str, schema: type[Settings]
) -> tuple[list[str], set[str]]:
    """Apply overrides to a sweep's mapping; return a message for each replaced entry, and the keys they search.

    Args:
        schema: of a sweep.
    """
    warn_repeated(overrides)
    own, base = {}, {}
    for item in overrides:
        first = item.partition("=")[0].split(".")[0]
        of_sweep = first in ("folds", "tune", "name")
        key, value = read_override(item, schema if of_sweep else config.Experiment)
        if of_sweep:
            own[key] = value
        elif first in ("space", "variants"):
            raise ConfigError(f"override {key}: override the setting, for example method.rank={{grid_search: [1, 2]}}")
        else:
            base[key.removeprefix("base.")] = value
    folds = tree["folds"] if isinstance(tree.get("folds"), Mapping) else {}
    fold_settings = {f"folds.{key}": value for key, value in folds.items()} | own
    for key, instead in FOLD_KEYS.items():
        option = instead.partition("=")[0]
        if key in base and fold_settings.get(option) is not None:
            raise ConfigError(f"override {key}: {option} overrides it; use {instead}")
    space, variants = (dict(tree[key]) if isinstance(tree.get(key), Mapping) else {} for key in ("space", "variants"))
    messages = [message for key, value in base.items() for message in _replace(space, variants, key, value)]
    terms = {key: value for key, value in base.items() if is_term(value)}
    tree.update({key: value for key, value in (("space", space), ("variants", variants)) if value or key in tree})
    if terms:
        tree["space"] = space | terms
    fixed = {key: value for key, value in base.items() if key not in terms}
    warn_dropped(tree["base"], fixed, source, methods.carry)
    tree["base"] = config.assign(tree["base"], fixed, methods.carry)
    config.assign(tree, own)
    return messages, set(terms)


def _replace(space: dict[str, Any], variants: dict[str, Any], key: str, value: Any) -> list[str]:
    """Remove an overridden key from the space and the variants."""
    messages = []
    for entry, term in list(space.items()):
        if _sets(entry, term, key):
            del space[entry]
            messages.append(f"space: {entry} was {term}, is now {key}={value}")
    for label, settings in variants.items():
        flat = leaves_of(settings or {})
        mine = [own for own in flat if own == key or own.startswith(f"{key}.")]
        if mine:
            variants[label] = {own: old for own, old in flat.items() if own not in mine}
            messages.append(f"variants: {', '.join(mine)} of {label!r} is now {key}={value}")
    return messages


def _sets(entry: str, term: Any, key: str) -> bool:
    """Whether an entry of the space sets a key, or a key below it."""
    if entry == key or entry.startswith(f"{key}."):
        return True
    lists = [own for kind, own in term.items() if kind != WHEN] if isinstance(term, Mapping) else []
    values = [value for own in lists if isinstance(own, list) for value in own]
    return any(f"{entry}.{leaf}" == key for value in values if isinstance(value, Mapping) for leaf in leaves(value))
