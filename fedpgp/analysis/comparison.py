"""Comparison of runs: groups over seeds and held-out domains, their means, standard deviations and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from fedpgp.config import differing
from fedpgp.core.errors import ConfigError
from fedpgp.federation.metrics import METRICS
from fedpgp.storage.sweep_folder import Fold

Reading = Literal["last", "mean_last_5", "max"]
READINGS: tuple[Reading, ...] = ("last", "mean_last_5", "max")
MAIN = ("hm", "held_out", "local", "all")
"""The main metric of a comparison is the first of these that was measured."""
SCENARIO_SECTIONS = ("data", "partition", "protocol")
"""Sections of the settings that define on what a run was trained and tested."""
NO_SCENARIO = ("data.template", "data.views")
"""Settings in these sections that do not."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cost:
    """Rounds, bytes and seconds of a run."""

    rounds: int
    bytes_up: int
    bytes_down: int
    seconds_per_round: float
    """wall-clock, mean over its rounds"""


@dataclass(frozen=True)
class Run:
    """One run, read from its rows."""

    path: Path
    state: str
    """finished | running | failed | stopped | interrupted"""
    reason: str | None
    fold: Fold
    settings: Mapping[str, Any]
    """by dotted key, all that can change a number except seed and held-out domain"""
    identity: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    """`evaluation.selections`"""
    cost: Cost = Cost(0, 0, 0, 0.0)

    @property
    def version(self) -> str:
        """Version of fedpgp that made the run."""
        return str(self.identity.get("versions", {}).get("fedpgp", "unknown"))

    @property
    def partition(self) -> str:
        """Digest of the partition of images among clients."""
        return str(self.identity.get("partition_digest"))

    @property
    def scenario(self) -> dict[str, Any]:
        """The settings that define on what it was trained and tested."""
        return {key: value for key, value in self.settings.items() if is_scenario(key)}


@dataclass(frozen=True)
class Statistic:
    """One number per seed."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (ddof 1); None for one seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def minus(self, other: Statistic) -> Difference | None:
        """Paired difference over the seeds that both have; None if there are none."""
        seeds = sorted(self.by_seed.keys() & other.by_seed.keys())
        return Difference({seed: self.by_seed[seed] - other.by_seed[seed] for seed in seeds}) if seeds else None


@dataclass(frozen=True)
class Difference(Statistic):
    """Paired differences, one per common seed."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% confidence interval of the mean, by Student's t with n - 1 degrees of freedom; None for one seed."""
        if self.std is None:
            return None
        from scipy.special import stdtrit  # the quantile of Student's t, without the weight of scipy.stats

        count = len(self.by_seed)
        half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * self.std / math.sqrt(count)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Group:
    """Runs of the same settings with different seeds and held-out domains."""

    label: str
    scenario: str
    """settings that distinguish its data, partition and protocol from those of other groups; empty: there is one"""
    runs: Mapping[Fold, Run]
    expected: frozenset[Fold]
    """the folds that groups of this scenario should have"""
    marks: tuple[str, ...] = ()
    """why its numbers do not compare with those of others"""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that all its runs share."""
        return next(iter(self.runs.values())).settings

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.settings["method.name"])

    @property
    def seeds(self) -> list[int]:
        """Seeds that have a run."""
        return sorted({fold.seed for fold in self.runs})

    @property
    def missing(self) -> list[Fold]:
        """Expected folds without a run."""
        return sorted(self.expected - self.runs.keys(), key=str)

    def statistic(self, metric: str, split: str = "test", reading: Reading = "last") -> Statistic | None:
        """A metric by seed, mean over the held-out domains; None if it was not measured.

        Seeds that lack a domain are left out.
        """
        name = f"{split}/{metric}"
        by_seed: dict[int, list[float]] = {}
        for fold, run in self.runs.items():
            if name in run.metrics:
                by_seed.setdefault(fold.seed, []).append(run.metrics[name][reading])
        domains = {fold.held_out for fold in self.expected}
        whole = {seed: fmean(by_seed[seed]) for seed in sorted(by_seed) if len(by_seed[seed]) == len(domains)}
        return Statistic(whole) if whole else None


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, and notes on them."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    """what was left out, or is compared despite a mismatch"""
    selected: tuple[str, ...] = ()
    """the metrics by which sweeps select settings, for example `val/hm`"""

    @property
    def scenarios(self) -> dict[str, list[Group]]:
        """The groups by scenario; numbers of different scenarios are not compared."""
        scenarios: dict[str, list[Group]] = {}
        for group in self.groups:
            scenarios.setdefault(group.scenario, []).append(group)
        return scenarios

    @property
    def labels(self) -> list[str]:
        """Labels of the groups, in order."""
        return list(dict.fromkeys(group.label for group in self.groups))

    def metrics(self, split: str = "test") -> list[str]:
        """Metrics that any group measured on a split, in the order of the tables."""
        found = {name for group in self.groups for run in group.runs.values() for name in run.metrics}
        return [metric for metric in METRICS if f"{split}/{metric}" in found]

    @property
    def main(self) -> str | None:
        """The main metric; None if none was measured."""
        measured = self.metrics()
        return next((metric for metric in MAIN if metric in measured), None)

    @cached_property
    def differing(self) -> list[str]:
        """Keys of the settings that are not the same in all groups."""
        return differing([group.settings for group in self.groups])

    def missing(self) -> list[str]:
        """Missing runs in words: folds of groups, and groups of scenarios."""
        lines = []
        for scenario, groups in self.scenarios.items():
            where = f" on {scenario}" if scenario else ""
            for group in groups:
                lines += [f"{group.label}{where}: no run of {fold}" for fold in group.missing]
            absent = [label for label in self.labels if label not in {one.label for one in groups}]
            lines += [f"no run{where} of {'; '.join(absent)}"] if absent else []
        return lines

    def baseline(self, label: str | None) -> str:
        """Return the given label, or by default the first one.

        Raises:
            ConfigError: no group has this label.
        """
        if label is not None and label not in self.labels:
            raise ConfigError(f"--baseline {label!r}: no such group; known: {', '.join(map(repr, self.labels))}")
        return label or self.labels[0]

    def difference(self, group: Group, baseline: str, metric: str, reading: Reading = "last") -> Difference | None:
        """Paired difference on test images to the baseline in the same scenario; None for the baseline itself."""
        other = next((one for one in self.scenarios[group.scenario] if one.label == baseline), None)
        if other is None or other is group:
            return None
        own, theirs = group.statistic(metric, "test", reading), other.statistic(metric, "test", reading)
        return own.minus(theirs) if own and theirs else None


def ranks(values: Sequence[float | None], digits: int = 2) -> list[int | None]:
    """Rank values rounded to `digits`: 1 for the best; ties share a rank; None for None."""
    shown = [None if value is None else round(value, digits) for value in values]
    order = sorted({value for value in shown if value is not None}, reverse=True)
    return [None if value is None else order.index(value) + 1 for value in shown]


def is_scenario(key: str) -> bool:
    """Whether a setting defines on what a run is trained and tested."""
    return key.partition(".")[0] in SCENARIO_SECTIONS and key not in NO_SCENARIO
