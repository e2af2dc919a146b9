"""Settings of a sweep: a base experiment, variants, a search space, folds, and Tune's options."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat, PrivateAttr, TypeAdapter, ValidationError, field_validator

from fedpgp import config, methods
from fedpgp.config import Settings, leaves
from fedpgp.config.reading import is_shipped, read_override, warn_dropped, warn_repeated
from fedpgp.config.settings import UNION
from fedpgp.config.values import load_yaml
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
from fedpgp.core.uris import above, is_uri
from fedpgp.federation.measures import MEASURES
from fedpgp.federation.metrics import COMPUTED, METRICS, TESTED
from fedpgp.storage.object_store import ObjectStore, before_work

FOLD_KEYS = {"seed": "folds.seeds=[1, 2, 3]", "protocol.held_out": "folds.held_out=all"}
"""Settings that distinguish folds and cannot be searched over, with what to use instead."""
GRID = "grid_search"
RANGES = {"uniform": "2 numbers", "loguniform": "2 numbers above 0", "randint": "2 whole numbers"}
BOUNDS: dict[bool, TypeAdapter[Any]] = {
    True: TypeAdapter(tuple[int, int]),
    False: TypeAdapter(tuple[FiniteFloat, FiniteFloat]),
}
"""Reads the two bounds of a range as settings are read; by whether they are whole."""
TERMS = (GRID, "choice", *RANGES)


class FoldSettings(Settings):
    """The folds of each trial. Trials are compared by the mean over their folds."""

    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """null: only the seed of the base"""
    held_out: Literal["all"] | tuple[str, ...] | None = None
    """domains to hold out in turn, with protocol.name=leave_one_domain_out, or data sets of a union, with
    protocol.name=cross_data; all: each of them"""


class TuneSettings(Settings):
    """How trials are drawn, compared and scheduled."""

    metric: str | None = None
    """`val/...`, after the last round; null: val/hm if base and novel are measured, else val/local. Also a measure
    (`val/local_worst`, `val/base_f1`) or one domain, in a union one data set (`val/local.sketch`). With `test/...` or
    `new_client/...` the best trial is selected on test images, and tables say so"""
    mode: Literal["max", "min"] = "max"
    """max: larger is better; min: for `train/loss` and calibration errors (`val/base_ece`)"""
    num_samples: int = Field(1, ge=1)
    """number of draws from the space, each with the whole grid"""
    seed: int = Field(1, ge=0)
    """seed of the draws"""
    scheduler: Literal["fifo", "asha", "median"] = "fifo"
    """fifo (run every trial to its end) | asha | median (stop trials that fall behind), by the mean over folds"""
    grace_rounds: int = Field(5, ge=1)
    """asha, median: rounds before a trial may be stopped, and between two decisions"""
    max_concurrent: int = Field(1, ge=1)
    """trials at a time, if the cluster has room"""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | None) -> str | None:
        measured = [one for one in METRICS if one not in COMPUTED]
        names = [*METRICS, *(f"{one}_{measure}" for one in measured for measure in MEASURES)]
        known = [f"{split}/{name}" for split in TESTED for name in names] + ["train/loss"]
        by_domain = tuple(f"{split}/{name}." for split in TESTED for name in measured if "held_out" not in name)
        if metric is None or metric in known or metric.startswith(by_domain):
            return metric
        hint = did_you_mean(metric, known, "write it as val/NAME, for example val/hm", count=2)
        raise ValueError(f"unknown metric; {hint}")


@dataclass(frozen=True)
class Term:
    """The domain of one key: `grid_search` or `choice` of values; `uniform`, `loguniform`, `randint` of [low, high)."""

    kind: str
    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw a value of a term other than `grid_search`."""
        if self.kind == "choice":
            return self.values[int(generator.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(generator.integers(low, high))
        if self.kind == "uniform":
            return float(generator.uniform(low, high))
        return math.exp(generator.uniform(math.log(low), math.log(high)))


class Sweep(Settings):
    """A complete sweep."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9._-]+$")
    """short name; the first part of the folder name"""
    base: dict[str, Any] = Field({})
    """the experiment that all trials start from"""
    variants: dict[str, dict[str, Any]] = Field({})
    """settings by dotted keys, by label; one dimension of the grid"""
    space: dict[str, Any] = Field({})
    """Tune's terms by dotted key, or by section, whose values are merged into it"""
    folds: FoldSettings = FoldSettings()
    tune: TuneSettings = TuneSettings()
    _shipped: dict[str, Any] = PrivateAttr({})  # the base of a shipped sweep, before overrides

    @field_validator("base")
    @classmethod
    def _sections_are_mappings(cls, base: dict[str, Any]) -> dict[str, Any]:
        sections = {key for key, value in config.Experiment() if isinstance(value, Settings)}
        for key, value in base.items():
            if key in sections and not isinstance(value, Mapping):
                raise ValueError(f"{key}: must be a mapping of settings (given: {value!r})")
        return base

    @property
    def terms(self) -> dict[str, Term]:
        """The parsed search space."""
        return {key: parse_term(key, value) for key, value in self.space.items()}

    @property
    def given(self) -> dict[str, Any]:
        """The base without the settings of a shipped sweep, some of which its own variants drop by design."""
        return {
            section: {key: one for key, one in own.items() if key == "name" or (key, one) not in shipped.items()}
            for section, own in self.base.items()
            if isinstance(own, Mapping)
            for shipped in [self._shipped.get(section) or {}]
        }


def load(source: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[Sweep, list[str]]:
    """Read a sweep, or an experiment (a sweep of one trial), from a file, by its shipped name, or from a mapping.

    The URI of a sweep's folder (s3://BUCKET/FOLDER/sweeps/NAME) gives its settings, with the storage root there.
    Overrides `a.b=v` or `base.a.b=v` change the base and replace that key in the space and the variants;
    `a.b={grid_search: [...]}` adds a term to the space; `folds.*`, `tune.*` and `name` change the sweep. Returns the
    sweep and a message for each replaced entry, or raises `ConfigError` with as many problems as possible.
    """
    shipped: dict[str, Any] = {}
    if is_uri(source):
        source, overrides = _at_uri(source, overrides)
    if isinstance(source, Mapping):
        name, tree = "sweep", copy.deepcopy(dict(source))
    else:
        name, tree = source, config.read_yaml(source, ("", "experiments"))
    if "base" not in tree:
        misplaced = sorted({"space", "variants", "folds", "tune"} & tree.keys())
        if misplaced:
            raise ConfigError(f"{name}: has {', '.join(misplaced)} but no base; add base: EXPERIMENT, such as icons")
        tree = {"name": tree.get("name", "sweep"), "base": tree}
    else:
        tree = {"name": Path(name).stem, **tree, "base": _base(tree["base"], Path(name).expanduser().parent)}
        if not isinstance(source, Mapping) and is_shipped(name):
            shipped = copy.deepcopy(tree["base"])
    messages, searched = _override(tree, overrides, name)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(config.explain(error, Sweep, name))) from None
    sweep._shipped = {section: own for section, own in shipped.items() if not {section, f"{section}.name"} & searched}
    _check(sweep, name)
    return sweep, messages


def _at_uri(uri: str, overrides: Sequence[str]) -> tuple[Mapping[str, Any], list[str]]:
    """The settings of the sweep at a URI, and overrides with which its storage is there."""
    with before_work():
        folder = ObjectStore.at(uri)
        content = folder.once().read("sweep.yaml")
    if content is None:
        raise ConfigError(f"{folder}: no sweep.yaml here; give a file, or the URI of a folder ROOT/sweeps/NAME-DIGEST")
    own_root = any(item.startswith("storage.root=") for item in overrides)
    root = above(uri, 2)
    storage = [f"storage.uri={root}", *([] if own_root else [f"storage.root={root}"])]
    return load_yaml(content.decode()), [*storage, *overrides]


def leave_one_domain_out(sweep: Sweep) -> Sweep:
    """Hold out each domain in turn, or each data set of a union, unless `folds.held_out` is set."""
    if sweep.folds.held_out is not None:
        return sweep
    base = copy.deepcopy(sweep.base)
    union = base.get("data", {}).get("name") == UNION
    protocol = {key: value for key, value in base.get("protocol", {}).items() if key != "source"}
    given = protocol.get("held_out")
    name = "cross_data" if union else "leave_one_domain_out"
    base["protocol"] = {**protocol, "name": name, "held_out": "all"}
    if not union and base.get("partition", {}).get("scheme") != "domain":
        base["partition"] = {"scheme": "domain", "clients": None}
    held_out = "all" if given in (None, "all") else (given,)
    return sweep.model_copy(update={"base": base, "folds": sweep.folds.model_copy(update={"held_out": held_out})})


def _is_term(value: Any) -> bool:
    """Whether a value looks like a term: a mapping with one key that is the name of a term, or similar to one."""
    return isinstance(value, Mapping) and len(value) == 1 and bool(did_you_mean(next(iter(value)), TERMS, cutoff=0.8))


def parse_term(key: str, value: Any) -> Term:
    """Parse a term such as `{grid_search: [1, 2, 4]}` or `{loguniform: [0.001, 0.1]}`, or raise `ConfigError`."""
    shape = f"write a term with its values, for example {{grid_search: [1, 2, 4]}} (terms: {', '.join(TERMS)})"
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"space: {key}: {shape}; given: {value!r}")
    ((kind, given),) = value.items()
    if isinstance(given, str):
        raise ConfigError(f"space: {key}: {kind}: text such as {given!r} is not executed; {shape}")
    if kind not in TERMS:
        raise ConfigError(f"space: {key}: unknown term {kind!r}; {did_you_mean(kind, TERMS, shape)}")
    if not isinstance(given, list) or not given:
        raise ConfigError(f"space: {key}: {kind} needs a list; given: {given!r}")
    values = _bounds(kind, given) if kind in RANGES else tuple(given)
    if values is None:
        raise ConfigError(f"space: {key}: {kind} needs {RANGES[kind]}, the lower one first; given: {given!r}")
    return Term(kind, values)


def _bounds(kind: str, given: list[Any]) -> tuple[Any, ...] | None:
    """The bounds of a range; None: there are not two, or they are no numbers of its kind in their order."""
    if any(isinstance(bound, bool) for bound in given):
        return None
    try:
        low, high = BOUNDS[kind == "randint"].validate_python(given)
    except ValidationError:
        return None
    return (low, high) if low < high and (kind != "loguniform" or low > 0) else None


def _base(given: Any, folder: Path) -> dict[str, Any]:
    """Read the base experiment: a mapping, a path (also relative to the sweep's folder), or a shipped name."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str):
        raise ConfigError(f"base: give a shipped experiment, a path or a mapping (given: {given!r})")
    return config.read_yaml(str(folder / given) if (folder / given).is_file() else given)


def _override(tree: dict[str, Any], overrides: Sequence[str], source: str) -> tuple[list[str], set[str]]:
    """Apply overrides to the sweep's mapping; return a message for each replaced entry, and the keys they search."""
    warn_repeated(overrides)
    own, base = {}, {}
    for item in overrides:
        first = item.partition("=")[0].split(".")[0]
        of_sweep = first in ("folds", "tune", "name")
        key, value = read_override(item, Sweep if of_sweep else config.Experiment)
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
    terms = {key: value for key, value in base.items() if _is_term(value)}
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
        flat = leaves(settings or {})
        mine = [own for own in flat if own == key or own.startswith(f"{key}.")]
        if mine:
            variants[label] = {own: old for own, old in flat.items() if own not in mine}
            messages.append(f"variants: {', '.join(mine)} of {label!r} is now {key}={value}")
    return messages


def _sets(entry: str, term: Any, key: str) -> bool:
    """Whether an entry of the space sets a key, or a key below it."""
    if entry == key or entry.startswith(f"{key}."):
        return True
    values = next(iter(term.values()), ()) if isinstance(term, Mapping) else ()
    return any(f"{entry}.{leaf}" == key for value in values if isinstance(value, Mapping) for leaf in leaves(value))


def _check(sweep: Sweep, source: str) -> None:
    """Check settings against each other; raise `ConfigError` with a line for each problem."""
    try:
        terms = sweep.terms
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    searched = {leaf for key, term in terms.items() for value in term.values for leaf in leaves({key: value})}
    set_by_variants = {leaf for settings in sweep.variants.values() for leaf in leaves(settings)}
    problems = [
        f"{source}: {key} cannot be searched over; use {instead}"
        for key, instead in FOLD_KEYS.items()
        if key in searched | set_by_variants
    ]
    if sweep.folds.seeds and len(set(sweep.folds.seeds)) < len(sweep.folds.seeds):
        problems.append(f"{source}: folds.seeds: duplicate seed ({list(sweep.folds.seeds)})")
    if both := sorted(searched & set_by_variants):
        problems.append(f"{source}: {', '.join(both)}: set by both the space and a variant; remove it from one")
    if problems:
        raise ConfigError("\n".join(problems))
