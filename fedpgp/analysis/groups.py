"""Form groups of runs with equal settings, label them by what they differ in, and mark what does not compare."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedpgp.analysis.comparison import Group, Run, is_scenario
from fedpgp.config import differing
from fedpgp.storage.sweep_folder import Fold

DIGESTS = ("digest", "fingerprint")
"""Last parts of keys of settings that are digests of files."""


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
    samples = [next(iter(runs.values())) for runs in by_settings.values()]
    keys = [] if merge_scenarios else differing([run.scenario for run in samples])
    scenarios = [_named(run.settings, keys) for run in samples]
    names = [name for name, _ in by_settings]
    labels = _labels(names, scenarios, [run.settings for run in samples], merge_scenarios)
    folds: dict[str, set[Fold]] = {}
    for scenario, runs in zip(scenarios, by_settings.values(), strict=True):
        folds.setdefault(scenario, set()).update(runs)
    groups = [
        Group(label, scenario, dict(sorted(runs.items(), key=str)), frozenset(folds[scenario]))
        for label, scenario, runs in zip(labels, scenarios, by_settings.values(), strict=True)
    ]
    return _marked(groups), notes


def _labels(
    names: Sequence[str], scenarios: Sequence[str], settings: Sequence[Mapping[str, Any]], merge_scenarios: bool
) -> list[str]:
    """The names, followed by the differing settings of groups that share a name and a scenario."""
    same: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, scenario, tree in zip(names, scenarios, settings, strict=True):
        same.setdefault((name, scenario), []).append(tree)
    common = [key for key in differing(settings) if is_scenario(key)] if merge_scenarios else []
    keys: dict[str, dict[str, None]] = {name: {} for name in names}
    for (name, _), trees in same.items():
        keys[name].update(dict.fromkeys(key for key in differing(trees) if not is_scenario(key)))
    return [
        ", ".join(filter(None, (name, _named(tree, [*keys[name], *common]))))
        for name, tree in zip(names, settings, strict=True)
    ]


def _named(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`rank=4, shots=2`; digests are shown only if nothing else differs."""
    plain = [key for key in keys if key.rpartition(".")[2] not in DIGESTS] or keys
    last = [key.rpartition(".")[2] for key in plain]
    shown = [one if last.count(one) == 1 and one != "name" else key for key, one in zip(plain, last, strict=True)]
    return ", ".join(f"{name}={_value(settings.get(key))}" for key, name in zip(plain, shown, strict=True))


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "null" if value is None else str(value)


def _marked(groups: Sequence[Group]) -> list[Group]:
    """Mark what makes a group's numbers incomparable with those of the first group of its scenario."""
    first: dict[str, Group] = {}
    marked = []
    for group in groups:
        other = first.setdefault(group.scenario, group)
        marks = [f"{fold}: {run.state}" for fold, run in group.runs.items() if run.state != "finished"]
        samples = [next(iter(one.runs.values())).scenario for one in (group, other)]
        common = group.runs.keys() & other.runs.keys()
        if differing(samples) or any(group.runs[fold].partition != other.runs[fold].partition for fold in common):
            marks.append(f"another partition than {other.label}")
        versions = {run.version for one in (group, other) for run in one.runs.values()}
        if len(versions) > 1:
            marks.append(f"fedpgp {' and '.join(sorted(versions))}")
        marked.append(replace(group, marks=tuple(marks)))
    return marked
