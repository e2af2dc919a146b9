"""Draw and validate the trials of a sweep from its seed. A trial is identified by the digest of its settings."""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedpgp import config, methods
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import code_keys
from fedpgp.core.seeding import numpy_generator
from fedpgp.core.text import distinct, redacted
from fedpgp.data import sources
from fedpgp.data.protocol import EVERY_DOMAIN
from fedpgp.experiments import planning
from fedpgp.experiments.sweeps import probes
from fedpgp.experiments.sweeps.sweep_settings import GRID, Sweep
from fedpgp.federation.measures import smaller_is_better, split_name
from fedpgp.federation.metrics import NEW_CLIENT
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, Suggestion, TrialSpec

MEASURED = {
    "base_to_novel": ("local", "base", "novel", "hm"),
    "all_classes": ("local", "all"),
    "leave_one_domain_out": ("local", "all", "held_out"),
    "cross_data": ("local", "all", "held_out"),
}
"""Metrics of each protocol; variants such as `local_global` begin with one of these names."""
PATHS = ("data.root", "backbone.weights")
"""The settings in `_paths`."""
ADAPTED = "_adapted"
NOT_OF_NEW_CLIENTS = ("_global", "_before_aggregation")
"""Ends of variants that are measured on clients that train."""


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep."""

    id: str
    """digest of the configuration without paths, seed and held-out domain"""
    label: str
    """short text that distinguishes it from the other trials"""
    variant: str
    """label of its variant; empty: the sweep has no variants"""
    settings: Mapping[str, Any] = field(repr=False)
    """differences from the base, by dotted keys"""
    experiment: Experiment = field(repr=False)
    """complete, with seed and held-out domain of the base"""

    def fold(self, fold: Fold) -> Experiment:
        """Return the experiment of a fold."""
        protocol = self.experiment.protocol.model_copy(update={"held_out": fold.held_out})
        return self.experiment.model_copy(update={"seed": fold.seed, "protocol": protocol})


@dataclass(frozen=True)
class SampledTrials:
    """The trials, in the order in which they start; of an adaptive search, trials that show that it can run."""

    trials: tuple[Trial, ...]
    repeated: int
    """number of duplicates that were dropped"""
    objectives: Objectives
    """what selects the best trial"""
    dropped: str
    """settings that a person gave and trials drop with another method, data set or backbone; empty: none"""


def draw(sweep: Sweep) -> SampledTrials:
    """Draw and validate all trials, or the probes of an adaptive search; a `ConfigError` names all invalid ones.

    A value depends only on the seed, its key, the sample and the point of the grid.
    """
    trials: dict[str, Trial] = {}
    wrong: dict[str, list[str]] = {}
    dropped: dict[tuple[str, str], dict[str, None]] = {}
    points = list(probes.probes(sweep) if sweep.tune.adaptive else _points(sweep))
    for label, (variant, point) in zip(_labels(sweep, points), points, strict=True):
        settings = settings_of(sweep, variant, point)
        for name, text in config.dropped(sweep.given, settings, methods.carry).items():
            key, _, value = name.partition("=")
            dropped.setdefault((key, text), {})[value] = None
        try:
            trial = _trial(sweep, label, variant, settings)
        except ConfigError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(label)
        else:
            twin = trials.setdefault(trial.id, trial)
            for key, one, other in zip(PATHS, _paths(twin.experiment), _paths(trial.experiment), strict=True):
                if one != other:
                    line = f"{key}: {one} and {other}: a path does not tell trials apart; run a sweep for each"
                    wrong.setdefault(redacted(line), []).append(label)
    if wrong:
        raise ConfigError("\n".join(format_error(line, labels, len(points)) for line, labels in wrong.items()))
    chosen = tuple(trials.values())
    lines = (f"{key}={', '.join(values)}: dropped {text} of the base" for (key, text), values in dropped.items())
    return SampledTrials(chosen, len(points) - len(chosen), _objectives(sweep, chosen), "; ".join(lines))


def label_of(sweep: Sweep, earlier: Sequence[Suggestion], variant: str, point: Mapping[str, Any]) -> str:
    """The label of a suggestion, which tells it apart from earlier ones."""
    return _labels(sweep, [*((one.variant, one.point) for one in earlier), (variant, point)])[-1]


def suggested(sweep: Sweep, label: str, variant: str, point: Mapping[str, Any]) -> Trial:
    """The trial of a suggestion; raises `ConfigError` if its settings do not fit together."""
    return _trial(sweep, label, variant, settings_of(sweep, variant, point))


def settings_of(sweep: Sweep, variant: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """The differences from the base, by dotted keys, of a variant and a point."""
    return config.leaves({**sweep.variants.get(variant, {}), **point})


def folds(sweep: Sweep, trial: Trial, domains: Sequence[str] | None) -> tuple[Fold, ...]:
    """List the folds of a trial: every seed with every held-out domain; raise `ConfigError` if the data lack one.

    Args:
        domains: of its data, or the parts of a union; None: unknown, so that `all` becomes one fold of that name.
    """
    seeds = sweep.folds.seeds or (trial.experiment.seed,)
    wanted = sweep.folds.held_out or trial.experiment.protocol.held_out
    if wanted == EVERY_DOMAIN:
        held_out: tuple[str | None, ...] = tuple(domains or (EVERY_DOMAIN,))
    else:
        held_out = wanted if isinstance(wanted, tuple) else (wanted,)
        unknown = [domain for domain in held_out if domain and domains is not None and domain not in domains]
        if unknown:
            known = ", ".join(domains or ())
            raise ConfigError(f"folds.held_out: no domain {', '.join(unknown)} in the data (known: {known})")
    if domains is not None:
        left = domains if trial.experiment.protocol.source is None else ()  # a source has no other data set beside it
        for metric in sweep.tune.objectives("").metrics:
            _check_domain(metric, left, held_out)
    return tuple(Fold(seed, domain) for seed in seeds for domain in held_out)


def _points(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield variant and values by key: the whole grid for each sample, with random values drawn at every point."""
    terms = sweep.terms
    grid = {key: term.values for key, term in terms.items() if term.kind == GRID}
    for sample in range(sweep.tune.num_samples):
        for variant, *values in itertools.product(sweep.variants or ("",), *grid.values()):
            point = dict(zip(grid, values, strict=True))
            where = json.dumps([variant, point], sort_keys=True)
            for key, term in terms.items():
                if term.kind != GRID:
                    point[key] = term.draw(numpy_generator(sweep.tune.seed, "sweep", key, sample, where))
            yield variant, {key: point[key] for key in terms}


def _trial(sweep: Sweep, label: str, variant: str, settings: Mapping[str, Any]) -> Trial:
    tree = config.assign(copy.deepcopy(sweep.base), settings, methods.carry)
    if sweep.folds.held_out is not None:
        config.assign(tree, {"protocol.held_out": EVERY_DOMAIN})
    experiment, _ = planning.settle(config.parse(tree, source="base"))
    return Trial(_identity(experiment), label, variant, settings, experiment)


def _identity(experiment: Experiment) -> str:
    """Digest without folds and without the folder of the weights."""
    weights = experiment.backbone.weights
    return config.digest(
        sources.complete(experiment).model_copy(
            update={
                "seed": 0,
                "protocol": experiment.protocol.model_copy(update={"held_out": None}),
                "backbone": experiment.backbone.model_copy(update={"weights": weights and Path(weights).name}),
            }
        ),
        **code_keys(planning.plugins_of(experiment)),
    )


def _paths(experiment: Experiment) -> tuple[str, str]:
    """The folders of the data and the weights, which are no part of a trial's identity, as text."""
    roots = ", ".join(str(one.root) for one in experiment.data.members)
    return roots, str(experiment.backbone.weights)


def _labels(sweep: Sweep, points: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A label for each variant and point: its values, with as many digits as tell those of the sweep apart."""
    keys = list(sweep.terms)
    last = [key.rsplit(".", 1)[-1] for key in keys]
    names = [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
    columns = [
        [f"{name}={text}" for text in distinct([point[key] for _, point in points])]
        for key, name in zip(keys, names, strict=True)
    ]
    rows = zip((variant for variant, _ in points), *columns, strict=True)
    return [", ".join(filter(None, row)) or sweep.name for row in rows]


def digest(sweep: Sweep, objectives: Objectives, planned: Sequence[TrialSpec]) -> str:
    """Twelve hex digits over trials, folds, metric, mode and scheduler of a sweep.

    Those of an adaptive search are not known: its probes, which stand for the base, and all that it suggests them from.
    """
    tune, named = sweep.tune, objectives.head
    judged = {key: value for key, value in tune.model_dump().items() if key in ("scheduler", "grace_rounds")}
    mode = {**judged, "mode": named["mode"]} if tune.scheduler != "fifo" else named["mode"]
    trials = [[trial.id, [asdict(fold) for fold in trial.folds]] for trial in planned]
    content = [named["metric"], mode, trials]
    if len(objectives.metrics) > 1:
        content.append(objectives.rule)
    if tune.adaptive:
        keys = {"search", "seed", "num_samples", "points_to_try"}
        content.append([sweep.variants, sweep.space, tune.model_dump(mode="json", include=keys)])
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def format_error(line: str, labels: Sequence[str], count: int) -> str:
    """An error message with the trials that it applies to, unless it applies to all."""
    shown = "; ".join(labels[:3]) + ("; ..." if len(labels) > 3 else "")
    return line if len(labels) == count else f"{line}  [{len(labels)} of {count} trials: {shown}]"


def _objectives(sweep: Sweep, trials: Sequence[Trial]) -> Objectives:
    """What selects the best trial; every trial must measure it."""
    protocols = {trial.experiment.protocol.name for trial in trials}
    objectives = sweep.tune.objectives("val/hm" if protocols == {"base_to_novel"} else "val/local")
    for metric, mode in zip(objectives.metrics, objectives.modes, strict=True):
        _check_metric(metric, mode, trials)
    return objectives


def _check_metric(metric: str, mode: str, trials: Sequence[Trial]) -> None:
    protocols = {trial.experiment.protocol.name for trial in trials}
    split, _, name = metric.partition("/")
    name = split_name(name)[0]
    if smaller_is_better(metric) and mode == "max":
        raise ConfigError(f"tune.mode: {metric} is the better the smaller it is; give tune.mode=min")
    for protocol in sorted(protocols) if split != "train" else ():
        known = MEASURED[protocol]
        if not name.startswith(known) or (name == "held_out" and split == "val"):
            names = ", ".join(f"{split}/{one}" for one in known if (split, one) != ("val", "held_out"))
            raise ConfigError(f"tune.metric: {metric} is not measured with protocol.name={protocol}; use {names}")
    if name == "local_own" and not all(trial.experiment.protocol.train_classes == "own" for trial in trials):
        raise ConfigError(f"tune.metric: {metric} is not measured without protocol.train_classes=own")
    if split == NEW_CLIENT and not all(trial.experiment.partition.unseen_clients for trial in trials):
        raise ConfigError(f"tune.metric: {metric} is not measured without partition.unseen_clients above 0")
    if split == NEW_CLIENT and name.endswith(NOT_OF_NEW_CLIENTS):
        raise ConfigError(f"tune.metric: {metric} is not measured; use {NEW_CLIENT}/{_stem(name)}")
    if name.endswith(ADAPTED):
        if split != NEW_CLIENT:
            raise ConfigError(f"tune.metric: {metric} is measured on new clients only; use {NEW_CLIENT}/{name}")
        if not all(map(_adapts, trials)):
            raise ConfigError(
                f"tune.metric: {metric} is not measured with federation.new_client_epochs=0, nor by a method that does "
                f"not train; use {NEW_CLIENT}/{_stem(name)}"
            )


def _check_domain(metric: str, domains: Sequence[str], held_out: Sequence[str | None]) -> None:
    """Raise `ConfigError` if a metric is of one domain (`val/local.sketch`) that some fold does not measure."""
    domain = split_name(metric)[2]
    several = len(domains) - any(name is not None for name in held_out) > 1
    known = [name for name in domains if name not in held_out] if several else []
    if domain is not None and domain not in known:
        hint = (
            f"domains of every fold: {', '.join(known)}" if known else "no domain is measured by itself in every fold"
        )
        raise ConfigError(f"tune.metric: {metric} is not measured with these data and folds; {hint}")


def _stem(name: str) -> str:
    """The metric of which a name is a variant."""
    for end in (ADAPTED, *NOT_OF_NEW_CLIENTS):
        name = name.removesuffix(end)
    return name


def _adapts(trial: Trial) -> bool:
    """Whether new clients are also tested after local epochs of their own."""
    experiment = trial.experiment
    method = methods.create(experiment.method.name, experiment.method.settings)
    return bool(method.phases) and experiment.federation.new_client_epochs > 0
