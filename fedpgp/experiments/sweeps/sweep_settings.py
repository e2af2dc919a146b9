"""Settings of a sweep: a base experiment, variants, a search space, folds, and Tune's options."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from fedpgp import config, methods
from fedpgp.config import Settings, leaves
from fedpgp.config.reading import is_shipped
from fedpgp.config.settings import UNION
from fedpgp.config.values import load_yaml
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
from fedpgp.core.uris import above, is_uri
from fedpgp.experiments.sweeps import conditions, sweep_overrides
from fedpgp.experiments.sweeps.search_space import (
    FOLD_KEYS,
    Point,
    Term,
    expand,
    is_term,
    leaves_of,
    ordered,
    parse_term,
    setting,
)
from fedpgp.federation.measures import MEASURES
from fedpgp.federation.metrics import COMPUTED, METRICS, TESTED
from fedpgp.storage.object_store import ObjectStore, before_work
from fedpgp.storage.objectives import HM, Objectives

Mode = Literal["max", "min"]


class FoldSettings(Settings):
    """The folds of each trial. Trials are compared by the mean over their folds."""

    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    """null: only the seed of the base"""
    splits: tuple[int, ...] | None = Field(None, min_length=1)
    """seeds by which the data are split into training, validation and test images (`data.split_seed`; in a union that
    of every part), so that the mean is not that of one split; null: the split of the base. For data without a split of
    their own"""
    held_out: Literal["all"] | tuple[str, ...] | None = None
    """domains to hold out in turn, with protocol.name=leave_one_domain_out, or data sets of a union, with
    protocol.name=cross_data; all: each of them"""


class TuneSettings(Settings):
    """How trials are drawn, compared and scheduled."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """grid (every combination of `grid_search` and variants, other terms drawn for each) | random (num_samples trials,
    for which variant and all terms are drawn) | optuna (each trial is suggested from the results of those before: by
    TPE, with two metrics by NSGA-II)"""
    metric: str | tuple[str, ...] | None = None
    """`val/...`, after the last round; null: val/hm if base and novel are measured, else val/local. Also a measure
    (`val/local_worst`, `val/base_f1`) or one domain, in a union one data set (`val/local.sketch`). With `test/...` or
    `new_client/...` the best trial is selected on test images, and tables say so. A list of two is a trade-off:
    `[val/local, val/novel]`"""
    mode: Mode | tuple[Mode, ...] = "max"
    """max: larger is better; min: for `train/loss` and calibration errors (`val/base_ece`). A list: for each metric"""
    best: str = HM
    """two metrics: the rule that names the best trial: hm (their harmonic mean), or such as
    `val/local where val/novel >= 70`"""
    num_samples: int = Field(1, ge=1)
    """number of draws from the space, each with the whole grid; random, optuna: number of trials"""
    points_to_try: tuple[dict[str, Any], ...] = ()
    """optuna: settings to start from, such as `{method.rank: 4}`, and `variant: LABEL`; what they leave out is
    suggested"""
    seed: int = Field(1, ge=0)
    """seed of the draws"""
    scheduler: Literal["fifo", "asha", "hyperband", "median"] = "fifo"
    """fifo (run every trial to its end) | asha | hyperband | median (stop trials that fall behind, by the mean over
    folds). hyperband is asynchronous: the first trial is stopped as asha does, the next one at the earliest after three
    times as many rounds, and so on until one is never stopped; then again from the start. So settings that learn slowly
    are not all lost. Ray Tune's synchronous HyperBand needs trials that can be paused and saved, which these cannot"""
    grace_rounds: int = Field(5, ge=1)
    """other schedulers than fifo: rounds before a trial may be stopped, and between two decisions"""
    max_concurrent: int = Field(1, ge=1)
    """trials at a time, if the cluster has room"""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in (metric,) if isinstance(metric, str) else metric or ():
            cls._check_metric(name)
        return metric

    @model_validator(mode="after")
    def _fit(self) -> Self:
        """Check settings that depend on each other."""
        try:
            objectives = self.objectives("")
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("tune.")) from None
        if len(objectives.metrics) > 1 and self.scheduler != "fifo":
            raise ValueError(f"scheduler: {self.scheduler} compares trials by one metric; use fifo with two")
        if self.points_to_try and self.search != "optuna":
            raise ValueError("points_to_try: only tune.search=optuna starts from known points")
        return self

    @property
    def adaptive(self) -> bool:
        """Whether trials depend on the results of earlier ones."""
        return self.search == "optuna"

    def objectives(self, default: str) -> Objectives:
        """What the sweep optimizes; `default` is the metric if none is given. Raises `ConfigError`."""
        given = self.metric or default
        metrics = (given,) if isinstance(given, str) else given
        modes = (self.mode,) * len(metrics) if isinstance(self.mode, str) else self.mode
        return Objectives(metrics, modes, self.best)

    @staticmethod
    def _check_metric(metric: str) -> None:
        measured = [one for one in METRICS if one not in COMPUTED]
        names = [*METRICS, *(f"{one}_{measure}" for one in measured for measure in MEASURES)]
        known = [f"{split}/{name}" for split in TESTED for name in names] + ["train/loss"]
        by_domain = tuple(f"{split}/{name}." for split in TESTED for name in measured if "held_out" not in name)
        if metric not in known and not metric.startswith(by_domain):
            hint = did_you_mean(metric, known, "write it as val/NAME, for example val/hm", count=2)
            raise ValueError(f"unknown metric; {hint}")


class Sweep(Settings):
    """A complete sweep."""

    name: str = Field("sweep", pattern=r"^[A-Za-z0-9._-]+$")
    """short name; the first part of the folder name"""
    base: dict[str, Any] = Field({})
    """the experiment that all trials start from"""
    variants: dict[str, dict[str, Any]] = Field({})
    """settings by dotted keys, by label; one dimension of the grid. A value can be a term for this variant alone:
    `{fedpgp: {method.name: fedpgp, method.mu: {grid_search: [0.1, 1]}}}`"""
    space: dict[str, Any] = Field({})
    """Tune's terms by dotted key, or by section, whose values are merged into it. With a condition a term is for some
    trials only: `method.mu: {grid_search: [0.1, 1], when: {method.name: [fedpgp, prompt_prox]}}`. It names settings of
    the base, of a variant or of the space, each with a value or a list of values, and all must hold"""
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
        """The parsed terms of the space and of the variants by name, each after those that its condition refers to."""
        found = [parse_term(key, value) for key, value in self.space.items()]
        for label, own in self.variants.items():
            found += [parse_term(key, value, label) for key, value in leaves_of(own).items() if is_term(value)]
        return {term.name: term for term in ordered(found)}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the variants; an empty one if there are none."""
        return tuple(self.variants) or ("",)

    def fixed(self, variant: str) -> dict[str, Any]:
        """The settings of a variant without its terms, by dotted key; none for `""`, a sweep without variants."""
        return {key: value for key, value in leaves_of(self.variants.get(variant, {})).items() if not is_term(value)}

    def tree(self, variant: str, point: Point) -> dict[str, Any]:
        """The experiment at a point of a variant, as a mapping that may leave out defaults."""
        return config.assign(dict(self.base), leaves({**self.fixed(variant), **point}), methods.carry)

    def applies(self, term: Term, variant: str, point: Point) -> bool:
        """Whether a term is one of a variant, and its condition holds at a point of the terms before it."""
        if term.variant not in (None, variant):
            return False
        return not term.when or term.holds(self.tree(variant, point))

    def points(
        self, variant: str, terms: Sequence[Term], choices: Callable[[Term, Point], Iterable[Any]]
    ) -> Iterator[dict[str, Any]]:
        """See `expand`."""
        return expand(terms, lambda term, point: self.applies(term, variant, point), choices)

    def names(self, section: str) -> set[str]:
        """The names that a section (`method`, `federation.server`) can have in a trial."""
        key = f"{section}.name"
        own = [term for term in self.terms.values() if key in term.leaves]
        trees = [leaves_of({term.key: value}) for term in own for value in term.values]
        if all(term.when or term.variant is not None for term in own):  # else the name is searched in every trial
            trees += [{key: setting(self.base, key), **self.fixed(label)} for label in self.labels]
        return {str(tree[key]) for tree in trees if key in tree}

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
    messages, searched = sweep_overrides.apply(tree, overrides, name, Sweep)
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


def _base(given: Any, folder: Path) -> dict[str, Any]:
    """Read the base experiment: a mapping, a path (also relative to the sweep's folder), or a shipped name."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str):
        raise ConfigError(f"base: give a shipped experiment, a path or a mapping (given: {given!r})")
    return config.read_yaml(str(folder / given) if (folder / given).is_file() else given)


def _check(sweep: Sweep, source: str) -> None:
    """Check settings against each other; raise `ConfigError` with a line for each problem."""
    try:
        terms = list(sweep.terms.values())
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    of_space = {leaf for term in terms if term.variant is None for leaf in term.leaves}
    of_variants = {leaf for term in terms if term.variant is not None for leaf in term.leaves}
    of_variants |= {leaf for label in sweep.variants for leaf in sweep.fixed(label)}
    problems = [
        f"{key} cannot be searched over; use {instead}"
        for key, instead in FOLD_KEYS.items()
        if key in of_space | of_variants
    ]
    for name in ("seeds", "splits"):
        given = getattr(sweep.folds, name)
        if given and len(set(given)) < len(given):
            problems.append(f"folds.{name}: duplicate {name.removesuffix('s')} ({list(given)})")
    if both := sorted(of_space & of_variants):
        problems.append(f"{', '.join(both)}: set by both the space and a variant; remove it from one")
    problems += conditions.check(sweep, terms)
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))
