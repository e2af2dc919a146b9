"""Runs that are compared: groups that differ by seed and held-out fold only, their means, spreads and differences."""

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
"""What a comparison is about first of all: the first of these that was measured."""
PLACE = ("data", "partition", "protocol")
"""Sections of the settings that say on what a run was trained and tested."""
ELSEWHERE = ("data.template", "data.views")
"""Settings there that change neither."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Cost:
    """What a run took."""

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
    """dotted keys: all that can change a number, but for seed and held-out domain"""
    identity: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    """`evaluation.selections`"""
    cost: Cost = Cost(0, 0, 0, 0.0)

    @property
    def version(self) -> str:
        """Of fedpgp, when the run was made."""
        return str(self.identity.get("versions", {}).get("fedpgp", "unknown"))

    @property
    def partition(self) -> str:
        """Digest of who holds which image."""
        return str(self.identity.get("partition_digest"))

    @property
    def place(self) -> dict[str, Any]:
        """The settings that say on what it was trained and tested."""
        return {key: value for key, value in self.settings.items() if is_place(key)}


@dataclass(frozen=True)
class Statistic:
    """One number per seed, and what they are together."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.by_seed.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (ddof 1); None for one seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def minus(self, other: Statistic) -> Difference | None:
        """Paired difference over the seeds that both have; None: there is none."""
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
    place: str
    """what tells the place where it was trained and tested from those of other groups; empty: there is but one"""
    runs: Mapping[Fold, Run]
    expected: frozenset[Fold]
    """the folds that a group of this place should have"""
    marks: tuple[str, ...] = ()
    """what sets its numbers apart from those of others, in words"""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of all its runs."""
        return next(iter(self.runs.values())).settings

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.settings["method.name"])

    @property
    def seeds(self) -> list[int]:
        """Those that have a run."""
        return sorted({fold.seed for fold in self.runs})

    @property
    def missing(self) -> list[Fold]:
        """Folds that other groups of its place have, or that its sweep asked for, and it lacks."""
        return sorted(self.expected - self.runs.keys(), key=str)

    def statistic(self, metric: str, split: str = "test", reading: Reading = "last") -> Statistic | None:
        """A metric by seed, the mean over its held-out domains; None: not measured.

        A seed that lacks one of the domains is left out: its mean would be over something else.
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
    """Groups of runs, and what is to be known of them."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    """what was left out, or is compared nonetheless"""
    selected: tuple[str, ...] = ()
    """the metric that each sweep selects its settings by, for example `val/hm`"""

    @property
    def places(self) -> dict[str, list[Group]]:
        """The groups by place; numbers of different places are not compared with one another."""
        places: dict[str, list[Group]] = {}
        for group in self.groups:
            places.setdefault(group.place, []).append(group)
        return places

    @property
    def labels(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(group.label for group in self.groups))

    def metrics(self, split: str = "test") -> list[str]:
        """What any group measured on a split, in the order of the tables."""
        found = {name for group in self.groups for run in group.runs.values() for name in run.metrics}
        return [metric for metric in METRICS if f"{split}/{metric}" in found]

    @property
    def main(self) -> str | None:
        """The metric that the comparison is about."""
        measured = self.metrics()
        return next((metric for metric in MAIN if metric in measured), None)

    @cached_property
    def differing(self) -> list[str]:
        """The settings that are not the same in all groups."""
        return differing([group.settings for group in self.groups])

    def missing(self) -> list[str]:
        """The cells without a number, in words: folds of groups, and groups of places."""
        said = []
        for place, groups in self.places.items():
            where = f" on {place}" if place else ""
            for group in groups:
                said += [f"{group.label}{where}: no run of {fold}" for fold in group.missing]
            absent = [label for label in self.labels if label not in {one.label for one in groups}]
            said += [f"no run{where} of {'; '.join(absent)}"] if absent else []
        return said

    def baseline(self, label: str | None) -> str:
        """The label to compare with: the given one, else the first.

        Raises:
            ConfigError: no group is called so.
        """
        if label is not None and label not in self.labels:
            raise ConfigError(f"--baseline {label!r}: no such group; there is {', '.join(map(repr, self.labels))}")
        return label or self.labels[0]

    def difference(self, group: Group, baseline: str, metric: str, reading: Reading = "last") -> Difference | None:
        """Paired difference on test images to the baseline of the same place; None: none, or it is the baseline."""
        other = next((one for one in self.places[group.place] if one.label == baseline), None)
        if other is None or other is group:
            return None
        own, theirs = group.statistic(metric, "test", reading), other.statistic(metric, "test", reading)
        return own.minus(theirs) if own and theirs else None


def ranks(values: Sequence[float | None], digits: int = 2) -> list[int | None]:
    """1 for the best, 2 for the second best, ... of values as they are shown; equals share a rank; None has none."""
    shown = [None if value is None else round(value, digits) for value in values]
    order = sorted({value for value in shown if value is not None}, reverse=True)
    return [None if value is None else order.index(value) + 1 for value in shown]


def is_place(key: str) -> bool:
    """Whether a setting says on what a run is trained and tested."""
    return key.partition(".")[0] in PLACE and key not in ELSEWHERE
