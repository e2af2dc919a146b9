"""All trials of a sweep, drawn up front from its seed, validated and told apart by their digests. Pure."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedpgp import config
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import code_keys
from fedpgp.core.seeding import numpy_generator
from fedpgp.data import sources
from fedpgp.data.protocol import EVERY_DOMAIN
from fedpgp.experiments import planning
from fedpgp.experiments.sweeps.sweep_settings import Sweep, TuneSettings, leaves
from fedpgp.storage.sweep_folder import Fold, TrialSpec

MEASURED = {
    "base_to_novel": ("local", "base", "novel", "hm"),
    "all_classes": ("local", "all"),
    "leave_one_domain_out": ("local", "all", "held_out"),
}
"""What a protocol measures, besides the variants of these names (`local_global`, ...)."""


@dataclass(frozen=True)
class Trial:
    """One configuration without folds."""

    id: str
    """digest of the configuration: never of a path, nor of a fold"""
    label: str
    """what tells it from the others, in few words"""
    variant: str
    """label of its variant; empty: the sweep has none"""
    settings: Mapping[str, Any] = field(repr=False)
    """what differs from the base, by dotted keys"""
    experiment: Experiment = field(repr=False)
    """complete; its seed and held-out domain are those of the base"""

    def fold(self, fold: Fold) -> Experiment:
        """The experiment that a fold runs."""
        protocol = self.experiment.protocol.model_copy(update={"held_out": fold.held_out})
        return self.experiment.model_copy(update={"seed": fold.seed, "protocol": protocol})


@dataclass(frozen=True)
class SampledTrials:
    """The trials, in the order in which they start."""

    trials: tuple[Trial, ...]
    repeated: int
    """drawn again, and left out"""
    metric: str
    """what the best is chosen by"""


def draw(sweep: Sweep) -> SampledTrials:
    """Draw and validate all trials. A draw depends on the seed, its key, its sample and its point of the grid alone.

    Raises:
        ConfigError: trials that cannot be used, all named at once.
    """
    trials: dict[str, Trial] = {}
    wrong: dict[str, list[str]] = {}
    count = 0
    for variant, point in _points(sweep):
        count += 1
        label = _label(sweep, variant, point)
        try:
            trial = _trial(sweep, label, variant, leaves({**sweep.variants.get(variant, {}), **point}))
        except ConfigError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(label)
        else:
            trials.setdefault(trial.id, trial)
    if wrong:
        raise ConfigError("\n".join(format_error(line, labels, count) for line, labels in wrong.items()))
    chosen = tuple(trials.values())
    return SampledTrials(chosen, count - len(chosen), _metric(sweep, chosen))


def folds(sweep: Sweep, trial: Trial, domains: Sequence[str] | None) -> tuple[Fold, ...]:
    """The folds of a trial: seeds, and for each of them the held-out domains.

    Args:
        domains: of its data; None: not known, `all` stands for one fold of that name.

    Raises:
        ConfigError: a held-out domain that the data do not have.
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
    return tuple(Fold(seed, domain) for seed in seeds for domain in held_out)


def _points(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    """Variant and values by key: the whole grid for each sample, and what is random drawn anew at every point."""
    terms = sweep.terms
    grid = {key: term.values for key, term in terms.items() if term.is_grid}
    for sample in range(sweep.tune.num_samples):
        for variant, *values in itertools.product(sweep.variants or ("",), *grid.values()):
            point = dict(zip(grid, values, strict=True))
            where = json.dumps([variant, point], sort_keys=True)
            for key, term in terms.items():
                if not term.is_grid:
                    point[key] = term.draw(numpy_generator(sweep.tune.seed, "sweep", key, sample, where))
            yield variant, {key: point[key] for key in terms}


def _trial(sweep: Sweep, label: str, variant: str, settings: Mapping[str, Any]) -> Trial:
    tree = config.assign(copy.deepcopy(sweep.base), settings)
    if sweep.folds.held_out is not None:
        config.assign(tree, {"protocol.held_out": EVERY_DOMAIN})
    experiment = config.parse(tree, source="base")
    experiment, _ = planning.settle(experiment)
    return Trial(_identity(experiment), label, variant, settings, experiment)


def _identity(experiment: Experiment) -> str:
    """The digest without folds, and without the folders that lead to the weights."""
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


def _label(sweep: Sweep, variant: str, point: Mapping[str, Any]) -> str:
    names = [key.rsplit(".", 1)[-1] for key in point]
    parts = [variant] if variant else []
    for key, name in zip(point, names, strict=True):
        value = point[key]
        value = value.get("name", json.dumps(value)) if isinstance(value, Mapping) else value
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name if names.count(name) == 1 else key}={shown}")
    return ", ".join(parts) or sweep.name


def digest(tune: TuneSettings, metric: str, planned: Sequence[TrialSpec]) -> str:
    """Twelve hex digits over what a sweep finds out: its trials, their folds, and how they are judged."""
    judged = {key: value for key, value in tune.model_dump().items() if key in ("mode", "scheduler", "grace_rounds")}
    trials = [[trial.id, [asdict(fold) for fold in trial.folds]] for trial in planned]
    text = json.dumps([metric, judged if tune.scheduler != "fifo" else tune.mode, trials], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def format_error(line: str, labels: Sequence[str], count: int) -> str:
    """A complaint, and the trials that it is about."""
    if len(labels) == count:
        return line
    return f"{line}  [{len(labels)} of {count} trials: {'; '.join(labels[:3])}{'; ...' if len(labels) > 3 else ''}]"


def _metric(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """What the best is chosen by, which every trial must measure."""
    protocols = {trial.experiment.protocol.name for trial in trials}
    metric = sweep.tune.metric or ("val/hm" if protocols == {"base_to_novel"} else "val/local")
    split, _, name = metric.partition("/")
    for protocol in sorted(protocols) if split != "train" else ():
        known = MEASURED[protocol]
        if not name.startswith(known) or (name == "held_out" and split == "val"):
            names = ", ".join(f"{split}/{one}" for one in known if (split, one) != ("val", "held_out"))
            raise ConfigError(
                f"tune.metric: {metric} is not measured with protocol.name={protocol} (there is: {names})"
            )
    return metric
