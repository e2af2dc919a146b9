"""Draw and validate the trials of a sweep from its seed. A trial is identified by the digest of its settings."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedpgp import config, methods
from fedpgp.config import DataSettings, Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import code_keys
from fedpgp.core.seeding import numpy_generator
from fedpgp.core.text import distinct, redacted
from fedpgp.data import sources
from fedpgp.data.protocol import EVERY_DOMAIN
from fedpgp.experiments import planning
from fedpgp.experiments.sweeps import conditions, measured, probes
from fedpgp.experiments.sweeps.search_space import GRID, RANGES, Point, Term, ordered
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, Suggestion, TrialSpec

PATHS = ("data.root", "backbone.weights")
"""The settings in `_paths`."""
DEFAULT_SPLIT = DataSettings().split_seed


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep."""

    id: str
    """digest of the configuration without paths, seed and held-out domain, and with `folds.splits` without the split"""
    label: str
    """short text that distinguishes it from the other trials"""
    variant: str
    """label of its variant; empty: the sweep has no variants"""
    settings: Mapping[str, Any] = field(repr=False)
    """differences from the base, by dotted keys"""
    experiment: Experiment = field(repr=False)
    """complete, with seed and held-out domain of the base, and the first split"""

    def fold(self, fold: Fold) -> Experiment:
        """Return the experiment of a fold."""
        protocol = self.experiment.protocol.model_copy(update={"held_out": fold.held_out})
        data = self.experiment.data if fold.split is None else self.experiment.data.with_split(fold.split)
        return self.experiment.model_copy(update={"seed": fold.seed, "data": data, "protocol": protocol})


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
    unranked: str
    """which trials do not record the metric, and why; empty: all do"""


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
    if len(chosen) == 1:
        _check_repeats(sweep, points)
    lines = (f"{key}={', '.join(values)}: dropped {text} of the base" for (key, text), values in dropped.items())
    objectives = _objectives(sweep, chosen)
    found = {trial.label: trial.experiment for trial in chosen}
    unranked = " ".join(filter(None, (measured.unranked(metric, found) for metric in objectives.metrics)))
    return SampledTrials(chosen, len(points) - len(chosen), objectives, "; ".join(lines), unranked)


def label_of(sweep: Sweep, earlier: Sequence[Suggestion], variant: str, point: Point) -> str:
    """The label of a suggestion, which tells it apart from earlier ones."""
    return _labels(sweep, [*((one.variant, one.point) for one in earlier), (variant, point)])[-1]


def suggested(sweep: Sweep, label: str, variant: str, point: Point) -> Trial:
    """The trial of a suggestion; raises `ConfigError` if its settings do not fit together."""
    return _trial(sweep, label, variant, settings_of(sweep, variant, point))


def settings_of(sweep: Sweep, variant: str, point: Point) -> dict[str, Any]:
    """The differences from the base, by dotted keys, of a variant and a point."""
    return config.leaves({**sweep.fixed(variant), **point})


def folds(sweep: Sweep, trial: Trial, domains: Sequence[str] | None) -> tuple[Fold, ...]:
    """List the folds of a trial: every seed with every split and every held-out domain.

    Args:
        domains: of its data, or the parts of a union; None: unknown, so that `all` becomes one fold of that name.

    Raises:
        ConfigError: the data lack a held-out domain.
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
            measured.check_domain(metric, left, held_out)
    splits = sweep.folds.splits or (None,)
    return tuple(Fold(seed, domain, split) for seed in seeds for split in splits for domain in held_out)


def check_splits(trial: Trial, digests: Mapping[Fold, str]) -> None:
    """Raise `ConfigError` if two splits of a trial's data are the same, because the data have a split of their own.

    Args:
        digests: the manifest's, by fold.
    """
    first: dict[str, Fold] = {}
    for fold, digest in digests.items():
        other = first.setdefault(digest, fold)
        if other.split != fold.split:
            raise ConfigError(
                f"folds.splits: {other.split} and {fold.split} are the same split of data {trial.experiment.data.name},"
                " which have a split of their own; leave out folds.splits"
            )


def _points(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield variant and values by key: the whole grid for each sample, with random values drawn at every point.

    With `tune.search=random` one point for each sample, all of whose values are drawn, and the variant.
    """
    terms, tune = sweep.terms, sweep.tune
    crossed = tune.search == "grid"
    grids = {term.key for term in terms.values() if crossed and term.kind == GRID}
    order = ordered(terms.values(), grids_first=True)
    for sample in range(tune.num_samples):
        drawn = sweep.labels[numpy_generator(tune.seed, "sweep", "variants", sample).integers(len(sweep.labels))]
        for variant in sweep.labels if crossed else [drawn]:

            def choices(term: Term, point: Point, variant: str = variant, sample: int = sample) -> Sequence[Any]:
                if crossed and term.kind == GRID:
                    return term.values
                of_grid = {key: value for key, value in point.items() if key in grids}
                where = json.dumps([variant, of_grid], sort_keys=True)
                return (term.draw(numpy_generator(tune.seed, "sweep", term.key, sample, where)),)

            for point in sweep.points(variant, order, choices):
                yield variant, {term.key: point[term.key] for term in terms.values() if term.key in point}


def _check_repeats(sweep: Sweep, points: Sequence[tuple[str, Point]]) -> None:
    """Raise `ConfigError` if points that are all one trial differ, or could not differ."""
    terms = list(sweep.terms.values())
    if len({json.dumps(point, sort_keys=True) for point in points}) > 1:
        keys = dict.fromkeys([key for label in sweep.labels for key in sweep.fixed(label)] + [one.key for one in terms])
        raise ConfigError(
            f"space: the {len(points)} trials are all the same, because {', '.join(keys) or 'the label of a variant'} "
            "does not change what is computed; leave it out"
        )
    if len(points) > 1 and all(term.kind not in RANGES and len(term.values) == 1 for term in terms):
        raise ConfigError(
            f"the {len(points)} trials of this sweep are all the same (tune.num_samples={sweep.tune.num_samples}); to "
            "repeat one with other seeds use folds.seeds=[1, 2, 3]"
        )


def _trial(sweep: Sweep, label: str, variant: str, settings: Mapping[str, Any]) -> Trial:
    tree = config.assign(copy.deepcopy(sweep.base), settings, methods.carry)
    if sweep.folds.held_out is not None:
        config.assign(tree, {"protocol.held_out": EVERY_DOMAIN})
    experiment = config.parse(tree, source="base")
    conditions.refuse_foreign(sweep, experiment, settings)
    if sweep.folds.splits is not None:
        experiment = experiment.model_copy(update={"data": experiment.data.with_split(sweep.folds.splits[0])})
    experiment, _ = planning.settle(experiment)
    return Trial(_identity(sweep, experiment), label, variant, settings, experiment)


def _identity(sweep: Sweep, experiment: Experiment) -> str:
    """Digest without folds and without the folder of the weights.

    Without `folds.splits` the split counts, so that trials have the ids that they had before there were such folds.
    """
    weights, data = experiment.backbone.weights, sources.complete(experiment).data
    return config.digest(
        experiment.model_copy(
            update={
                "data": data if sweep.folds.splits is None else data.with_split(DEFAULT_SPLIT),
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


def _labels(sweep: Sweep, points: Sequence[tuple[str, Point]]) -> list[str]:
    """A label for each variant and point: its values, with as many digits as tell those of the sweep apart."""
    keys = list(dict.fromkeys(term.key for term in sweep.terms.values()))
    last = [key.rsplit(".", 1)[-1] for key in keys]
    rows: list[list[str]] = [[variant] for variant, _ in points]
    for key, short in zip(keys, last, strict=True):
        name = short if last.count(short) == 1 else key
        having = [(row, point[key]) for row, (_, point) in zip(rows, points, strict=True) if key in point]
        for (row, _), text in zip(having, distinct([value for _, value in having]), strict=True):
            row.append(f"{name}={text}")
    return [", ".join(filter(None, row)) or sweep.name for row in rows]


def digest(sweep: Sweep, objectives: Objectives, planned: Sequence[TrialSpec]) -> str:
    """Twelve hex digits over trials, folds, metric, mode and scheduler of a sweep.

    Those of an adaptive search are not known: its probes, which stand for the base, and all that it suggests them from.
    """
    tune, named = sweep.tune, objectives.head
    judged = {key: value for key, value in tune.model_dump().items() if key in ("scheduler", "grace_rounds")}
    mode = {**judged, "mode": named["mode"]} if tune.scheduler != "fifo" else named["mode"]
    trials = [[trial.id, [fold.tree for fold in trial.folds]] for trial in planned]
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
    """What selects the best trial; the protocol of every trial must have it."""
    protocols = {trial.experiment.protocol.name for trial in trials}
    novel = protocols == {"base_to_novel"} and not all(measured.why_not(trial.experiment, "val/hm") for trial in trials)
    objectives = sweep.tune.objectives("val/hm" if novel else "val/local")
    for metric, mode in zip(objectives.metrics, objectives.modes, strict=True):
        measured.check_metric(metric, mode, [trial.experiment for trial in trials])
    return objectives
