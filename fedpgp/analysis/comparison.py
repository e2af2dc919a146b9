"""Comparison of runs: groups over seeds, splits and held-out domains; means, standard deviations and differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from fedpgp.analysis.coverage import Coverage, lines
from fedpgp.analysis.labels import is_scenario, labels, scenario_name, texts
from fedpgp.analysis.statistic import Statistic, in_order, varied
from fedpgp.config import differing
from fedpgp.core.errors import ConfigError
from fedpgp.federation.measures import split_name
from fedpgp.federation.metrics import METRICS, place
from fedpgp.storage.sweep_folder import Fold, Repetition

Reading = Literal["last", "mean_last_5", "max"]
READING_TITLES: Mapping[Reading, str] = {"last": "last", "mean_last_5": "mean of last 5", "max": "max"}
METRIC_TITLES = {
    "local": "Local",
    "base": "Base",
    "novel": "Novel",
    "hm": "HM",
    "all": "All",
    "held_out": "Held-out domain",
    "local_own": "Local, own classes",
    "local_global": "Local, global model",
    "base_global": "Base, global model",
    "novel_global": "Novel, global model",
    "all_global": "All, global model",
    "held_out_global": "Held-out, global model",
    "local_before_aggregation": "Local before aggregation",
    "local_adapted": "Local, adapted",
    "base_adapted": "Base, adapted",
    "novel_adapted": "Novel, adapted",
    "hm_adapted": "HM, adapted",
    "all_adapted": "All, adapted",
    "held_out_adapted": "Held-out, adapted",
}
MEASURE_TITLES = {
    "ece": "ECE",
    "f1": "macro F1",
    "balanced": "balanced",
    "worst": "worst",
    "p10": "10th pct.",
}
PROTOCOL_METRICS = ("local", "base", "novel", "hm", "all", "held_out")
"""The metrics of tables and figures."""
MAIN = ("hm", "held_out", "local", "all")
"""The main metric of a comparison is the first of these that was measured."""


@dataclass(frozen=True)
class Run:
    """One run, read from its rows."""

    path: Path
    state: str
    """finished | running | failed | stopped | interrupted"""
    reason: str | None
    fold: Fold
    settings: Mapping[str, Any]
    """by dotted key, all that can change a number except seed, held-out domain and, if the fold has one, split"""
    identity: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    """`evaluation.selections`"""
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds_per_round: float = 0.0
    """wall-clock, mean over its rounds"""
    stretches: Sequence[Mapping[str, Any]] = ()
    """the versions and hardware that made its rounds, by first round"""
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    """over how many clients its means are, by metric (`test/local`)"""

    @property
    def version(self) -> str:
        """Version of fedpgp that made the run."""
        return str(self.identity.get("versions", {}).get("fedpgp", "unknown"))

    @property
    def content(self) -> str | None:
        """Digest of the images; None: not recorded."""
        return self.identity.get("content_digest")

    @property
    def partition(self) -> str:
        """Digest of the partition of images among clients."""
        return str(self.identity.get("partition_digest"))

    @property
    def scenario(self) -> dict[str, Any]:
        """The settings that define on what it was trained and tested."""
        return {key: value for key, value in self.settings.items() if is_scenario(key)}


@dataclass(frozen=True)
class Group:
    """Runs of the same settings with different seeds, splits of the data and held-out domains."""

    label: str
    scenario: str
    """settings that distinguish its data, partition and protocol from those of other groups; empty: there is one"""
    runs: Mapping[Fold, Run]
    expected: frozenset[Fold]
    """the folds that groups of this scenario should have"""
    marks: tuple[str, ...] = ()
    """why its numbers do not compare with those of others"""
    family: str = ""
    """its variant of a sweep or its method, of which there may be groups with other settings"""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that all its runs share."""
        return next(iter(self.runs.values())).settings

    @property
    def coverage(self) -> dict[str, str]:
        """By metric (`test/local`): over how many clients its mean is, if not over all of them."""
        return lines((run.coverage for run in self.runs.values()), METRIC_TITLES)

    @property
    def notes(self) -> tuple[str, ...]:
        """The marks, and over how many clients the means are."""
        return (*self.marks, *dict.fromkeys(self.coverage.values()))

    def notes_on(self, metric: str) -> str:
        """The marks, and over how many clients the mean of a metric (`test/local`) is, as one text."""
        return "; ".join([*self.marks, *(text for name, text in self.coverage.items() if name == metric)])

    @property
    def seeds(self) -> list[Repetition]:
        """Seeds, or seeds and splits, that have a run."""
        return sorted({fold.repetition for fold in self.runs}, key=in_order)

    @property
    def missing(self) -> list[Fold]:
        """Expected folds without a run."""
        return sorted(self.expected - self.runs.keys(), key=str)

    def statistic(self, metric: str, split: str = "test", reading: Reading = "last") -> Statistic | None:
        """A metric by seed and split, mean over held-out domains, without seeds that lack one; None: not measured."""
        name = f"{split}/{metric}"
        by_seed: dict[Repetition, list[float]] = {}
        for fold, run in self.runs.items():
            if name in run.metrics:
                by_seed.setdefault(fold.repetition, []).append(run.metrics[name][reading])
        domains = {fold.held_out for fold in self.expected}
        seeds = sorted(by_seed, key=in_order)
        whole = {seed: fmean(by_seed[seed]) for seed in seeds if len(by_seed[seed]) == len(domains)}
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

    def names(self, split: str = "test") -> list[str]:
        """What any group measured on a split: the metrics, their measures (`base_ece`), and domains (`base.sketch`)."""
        names = {name for group in self.groups for run in group.runs.values() for name in run.metrics}
        found = [name.removeprefix(f"{split}/") for name in names if name.startswith(f"{split}/")]
        return sorted((name for name in found if split_name(name)[0] in METRICS), key=place)

    @property
    def main(self) -> str | None:
        """The main metric; None if none was measured."""
        found = self.metrics()
        return next((metric for metric in MAIN if metric in found), None)

    @property
    def is_tuned(self) -> bool:
        """Whether some scenario has several methods, one of them with several settings."""
        counts = [list(map(len, families(groups).values())) for groups in self.scenarios.values()]
        return self.main is not None and any(len(own) > 1 and max(own) > 1 for own in counts)

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
        """Return the given label, or by default the first one; a family's name stands for the settings `chosen` of it.

        Raises:
            ConfigError: no group has this label.
        """
        known = dict.fromkeys([*self.labels, *(group.family for group in self.groups if group.family)])
        if label is not None and label not in known:
            raise ConfigError(f"--baseline {label!r}: no such group; known: {', '.join(map(repr, known))}")
        return label or self.labels[0]

    def reference(self, scenario: str, baseline: str) -> Group | None:
        """The group of a scenario that a baseline means; None: the scenario has none."""
        groups = self.scenarios[scenario]
        named = next((group for group in groups if group.label == baseline), None)
        return named or chosen(groups, self.main or "").get(baseline)

    def difference(self, group: Group, baseline: str, metric: str, reading: Reading = "last") -> Statistic | None:
        """Paired difference on test images to the baseline in the same scenario; None for the baseline itself."""
        other = self.reference(group.scenario, baseline)
        if other is None or other is group:
            return None
        own, theirs = group.statistic(metric, "test", reading), other.statistic(metric, "test", reading)
        return own.minus(theirs) if own and theirs else None


def families(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each variant or method."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.family, []).append(group)
    return found


def chosen(groups: Sequence[Group], metric: str) -> dict[str, Group]:
    """By family, the group with the highest mean of a metric on validation images, after the last round.

    Families of which no group measured it are left out.
    """
    best: dict[str, tuple[float, Group]] = {}
    for group in groups:
        found = group.statistic(metric, "val")
        if found is not None and (group.family not in best or found.mean > best[group.family][0]):
            best[group.family] = found.mean, group
    return {family: group for family, (_, group) in best.items()}


def measured(groups: Sequence[Group]) -> list[str]:
    """The metrics of tables and figures that any of these groups measured on test images."""
    return [metric for metric in PROTOCOL_METRICS if any(group.statistic(metric) for group in groups)]


def repeated_over(groups: Sequence[Group]) -> str:
    """What differs between the runs that a mean is over: `seeds`, `splits` or `seeds and splits`."""
    return varied({one for group in groups for one in group.seeds})


def grouped(members: Sequence[tuple[str | None, Run]], merge_scenarios: bool) -> tuple[list[Group], list[str]]:
    """Group runs of equal settings; also return notes on runs that were left out.

    Args:
        members: the label of a run's group (None: its method) and the run.
        merge_scenarios: put groups of different scenarios together; their labels and marks tell them apart.
    """
    by_settings: dict[tuple[str, str], dict[Fold, Run]] = {}
    notes = []
    for label, run in members:
        key = (label or str(run.settings["method.name"]), json.dumps(run.settings, sort_keys=True))
        runs = by_settings.setdefault(key, {})
        earlier = runs.setdefault(run.fold, run)
        if earlier is not run:
            older, runs[run.fold] = sorted([earlier, run], key=lambda one: one.identity["created_ms"])
            notes.append(f"left out: {older.path.name}, since {runs[run.fold].path.name} is newer")
    kinds = [dict(sorted(runs.items(), key=str)) for runs in by_settings.values()]
    samples = [next(iter(runs.values())) for runs in kinds]
    keys = [] if merge_scenarios else differing([run.scenario for run in samples])
    shown = texts([run.settings for run in samples])
    scenarios = [scenario_name(own, shown, keys) for own in shown]
    names = [(name, scenario) for (name, _), scenario in zip(by_settings, scenarios, strict=True)]
    found = labels(names, [run.settings for run in samples], shown, merge_scenarios)
    folds: dict[str, set[Fold]] = {}
    for scenario, runs in zip(scenarios, kinds, strict=True):
        folds.setdefault(scenario, set()).update(runs)
    groups = []
    first: dict[str, tuple[str, Mapping[Fold, Run]]] = {}
    for label, (family, scenario), runs in zip(found, names, kinds, strict=True):
        marks = _marks(runs, *first.setdefault(scenario, (label, runs)))
        groups.append(Group(label, scenario, runs, frozenset(folds[scenario]), marks, family))
    return groups, notes


def _marks(runs: Mapping[Fold, Run], other: str, others: Mapping[Fold, Run]) -> tuple[str, ...]:
    """What makes the numbers of a group incomparable with those of the first group of its scenario, `other`."""
    marks = [f"{fold}: {run.state}" for fold, run in runs.items() if run.state != "finished"]
    scenarios = [next(iter(group.values())).scenario for group in (runs, others)]
    common = runs.keys() & others.keys()
    if "data.content" in (changed := differing(scenarios)):
        marks.append(f"other images than {other}")
        changed.remove("data.content")
    if changed or any(runs[fold].partition != others[fold].partition for fold in common):
        marks.append(f"another partition than {other}")
    versions = {run.version for group in (runs, others) for run in group.values()}
    if len(versions) > 1:
        marks.append(f"fedpgp {' and '.join(sorted(versions))}")
    return tuple(marks)
