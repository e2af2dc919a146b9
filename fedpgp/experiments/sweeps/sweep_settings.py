"""A sweep as frozen, validated settings: a base experiment, variants, a search space, folds, and how it is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from fedpgp import config, methods
from fedpgp.config import Settings
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
from fedpgp.experiments.sweeps import search_space
from fedpgp.experiments.sweeps.search_space import Term
from fedpgp.federation.metrics import METRICS

FOLD_KEYS = {"seed": "folds.seeds=[1, 2, 3]", "protocol.held_out": "folds.held_out=all"}
"""What makes a fold and is never searched over, and how it is given."""


class FoldSettings(Settings):
    """What each trial is repeated over; a trial counts by the mean over its folds."""

    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """null: the base's seed alone"""
    held_out: Literal["all"] | tuple[str, ...] | None = None
    """domains that are held out in turn, with protocol.name=leave_one_domain_out; all: each of the data's"""


class TuneSettings(Settings):
    """How trials are drawn, judged and scheduled."""

    metric: str | None = None
    """`val/...`, after the last round; null: val/hm where base and novel are measured, else val/local. `test/...`
    chooses on the test images, which every table then says"""
    mode: Literal["max", "min"] = "max"
    """whether more is better"""
    num_samples: int = Field(1, ge=1)
    """how often the space is drawn from; each time with the whole grid"""
    seed: int = Field(1, ge=0)
    """seed of the draws"""
    scheduler: Literal["fifo", "asha", "median"] = "fifo"
    """fifo (every trial to its end) | asha | median (stop what lags behind), on the mean over folds"""
    grace_rounds: int = Field(5, ge=1)
    """asha, median: rounds before a trial may be stopped, and between two looks at it"""
    max_concurrent: int = Field(1, ge=1)
    """trials at a time, as far as the cluster has room"""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | None) -> str | None:
        known = [f"{split}/{name}" for split in ("val", "test") for name in METRICS] + ["train/loss"]
        if metric is None or metric in known:
            return metric
        hint = did_you_mean(metric, known, "write it as val/NAME, for example val/hm", count=2)
        raise ValueError(f"unknown metric; {hint}")


SECTIONS = frozenset(
    key
    for key, field in config.Experiment.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
)
"""Keys of an experiment that have settings below them."""


class Sweep(Settings):
    """One sweep, complete."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9._-]+$")
    """short name, first part of the sweep's folder"""
    base: dict[str, Any] = Field({})
    """the experiment that all trials start from"""
    variants: dict[str, dict[str, Any]] = Field({})
    """labelled settings by dotted keys, as one dimension of the grid"""
    space: dict[str, Any] = Field({})
    """dotted keys, or sections whose values are merged into them, in Tune's terms"""
    folds: FoldSettings = FoldSettings()
    tune: TuneSettings = TuneSettings()

    @field_validator("base")
    @classmethod
    def _sections_are_mappings(cls, base: dict[str, Any]) -> dict[str, Any]:
        for key, value in base.items():
            if key in SECTIONS and not isinstance(value, Mapping):
                raise ValueError(f"{key}: give settings below it, or leave it out (given: {value!r})")
        return base

    @property
    def terms(self) -> dict[str, Term]:
        """The space, read."""
        return {key: search_space.parse(key, value) for key, value in self.space.items()}


def load(source: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Sweep, list[str]]:
    """Read a sweep, or an experiment (a sweep of one trial), from a file, by its shipped name or as a mapping.

    `base.a.b=v` and `a.b=v` change the base, and win over what the space or a variant says of that key;
    `folds.*`, `tune.*` and `name` change the sweep; `a.b={grid_search: [...]}` puts a term into the space.

    Returns:
        The sweep, and what its overrides replaced, in words.

    Raises:
        ConfigError: no such file, or it cannot be used (as much as possible of it named at once).
    """
    if isinstance(source, Mapping):
        name, tree = "sweep", copy.deepcopy(dict(source))
    else:
        name, tree = source, config.read_yaml(source, ("", "experiments"))
    if "base" not in tree:
        misplaced = sorted({"space", "variants", "folds", "tune"} & tree.keys())
        if misplaced:
            raise ConfigError(
                f"{name}: has {', '.join(misplaced)} but no base; give base: EXPERIMENT, for example icons"
            )
        tree = {"name": tree.get("name", "sweep"), "base": tree}
    else:
        tree = {"name": Path(name).stem, **tree, "base": _base(tree["base"], Path(name).expanduser().parent)}
    said = _override(tree, overrides, name)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(config.explain(error, Sweep, name))) from None
    _check(sweep, name)
    return sweep, said


def leave_one_domain_out(sweep: Sweep) -> Sweep:
    """The same with each domain held out in turn, if it does not say already what is held out."""
    if sweep.folds.held_out is not None:
        return sweep
    base = copy.deepcopy(sweep.base)
    given = base.get("protocol", {}).get("held_out")
    base["protocol"] = {**base.get("protocol", {}), "name": "leave_one_domain_out", "held_out": "all"}
    if base.get("partition", {}).get("scheme") != "domain":
        base["partition"] = {"scheme": "domain", "clients": None}
    held_out = "all" if given in (None, "all") else (given,)
    return sweep.model_copy(update={"base": base, "folds": sweep.folds.model_copy(update={"held_out": held_out})})


def dump(sweep: Sweep) -> str:
    """The sweep as YAML that `load` reads back to the same."""
    return yaml.safe_dump(sweep.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"name": "dtd"}}` as `{"data.name": "dtd"}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _base(given: Any, beside: Path) -> dict[str, Any]:
    """The base experiment as a mapping: itself, or by path (also beside the sweep's file), or by shipped name."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str):
        raise ConfigError(f"base: give a shipped experiment, a path or a mapping (given: {given!r})")
    return config.read_yaml(str(beside / given) if (beside / given).is_file() else given)


def _override(tree: dict[str, Any], overrides: Sequence[str], source: str) -> list[str]:
    """Apply overrides to the sweep's mapping; what they replaced, in words."""
    own, base, said = {}, {}, []
    for key, value in map(config.read_override, overrides):
        first = key.split(".")[0]
        if first in ("folds", "tune") or key == "name":
            own[key] = value
        elif first in ("space", "variants"):
            raise ConfigError(
                f"override {key}: give the setting itself, for example method.rank={{grid_search: [1, 2]}}"
            )
        else:
            base[key.removeprefix("base.")] = value
    folds = tree["folds"] if isinstance(tree.get("folds"), Mapping) else {}
    repeated = {f"folds.{key}": value for key, value in folds.items()} | own
    for key, instead in FOLD_KEYS.items():
        option = instead.partition("=")[0]
        if key in base and repeated.get(option) is not None:
            raise ConfigError(f"override {key}: {option} decides over what every trial is repeated; give {instead}")
    wanted = {key: dict(tree[key]) if isinstance(tree.get(key), Mapping) else {} for key in ("space", "variants")}
    for key, value in base.items():
        said += _displace(wanted, key, value)
    terms = {key: value for key, value in base.items() if search_space.is_term(value)}
    tree.update({key: value for key, value in wanted.items() if value or key in tree})
    if terms:
        tree["space"] = wanted["space"] | terms
    fixed = {key: value for key, value in base.items() if key not in terms}
    config.warn_dropped(tree["base"], fixed, source, methods.defaults)
    tree["base"] = config.assign(tree["base"], fixed)
    config.assign(tree, own)
    return said


def _displace(wanted: dict[str, dict[str, Any]], key: str, value: Any) -> list[str]:
    """Take a key that is overridden out of the space and the variants."""
    said = []
    for entry, term in list(wanted["space"].items()):
        if _sets(entry, term, key):
            del wanted["space"][entry]
            said.append(f"space: {entry} was {term}, is now {key}={value}")
    for label, settings in wanted["variants"].items():
        mine = [own for own in leaves(settings or {}) if own == key or own.startswith(f"{key}.")]
        if mine:
            wanted["variants"][label] = {own: old for own, old in leaves(settings).items() if own not in mine}
            said.append(f"variants: {', '.join(mine)} of {label!r} is now {key}={value}")
    return said


def _sets(entry: str, term: Any, key: str) -> bool:
    """Whether an entry of the space sets that key, or something below it."""
    if entry == key or entry.startswith(f"{key}."):
        return True
    values = next(iter(term.values()), ()) if isinstance(term, Mapping) else ()
    return any(f"{entry}.{leaf}" == key for value in values if isinstance(value, Mapping) for leaf in leaves(value))


def _check(sweep: Sweep, source: str) -> None:
    """What no single field can tell.

    Raises:
        ConfigError: all that is wrong, a line each.
    """
    wrong = []
    try:
        terms = sweep.terms
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    drawn = {leaf for key, term in terms.items() for value in term.values for leaf in leaves({key: value})}
    set_by_variants = {leaf for settings in sweep.variants.values() for leaf in leaves(settings)}
    for key, instead in FOLD_KEYS.items():
        if key in drawn | set_by_variants:
            wrong.append(f"{source}: {key} makes a fold and is not searched over; give {instead}")
    if sweep.folds.seeds and len(set(sweep.folds.seeds)) < len(sweep.folds.seeds):
        wrong.append(f"{source}: folds.seeds: one stands twice ({list(sweep.folds.seeds)})")
    both = sorted(drawn & set_by_variants)
    if both:
        wrong.append(f"{source}: {', '.join(both)}: in the space and in a variant; only one can have its way")
    if wrong:
        raise ConfigError("\n".join(wrong))
