"""Runs of equal settings become groups: named by what sets them apart, marked where their numbers do not compare."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedpgp.analysis.comparison import Group, Run, is_place
from fedpgp.config import differing
from fedpgp.storage.sweep_folder import Fold

DIGESTS = ("digest", "fingerprint")
"""Settings that are digests of what a path leads to."""


def grouped(members: Sequence[tuple[str | None, Run]], one_place: bool) -> tuple[list[Group], list[str]]:
    """Runs of equal settings together, named by what sets them apart; and which runs are in none, and why.

    Args:
        members: what a run's group is called, None: by its method; and the run.
        one_place: groups of different places stand together, marked, and their labels tell.
    """
    together: dict[tuple[str, str], dict[Fold, Run]] = {}
    notes = []
    for label, run in members:
        key = (label or str(run.settings["method.name"]), json.dumps(run.settings, sort_keys=True))
        runs = together.setdefault(key, {})
        earlier = runs.setdefault(run.fold, run)
        if earlier is not run:
            older, runs[run.fold] = sorted([earlier, run], key=lambda one: one.identity["created_ms"])
            notes.append(f"left out: {older.path.name}, since {runs[run.fold].path.name} is newer")
    samples = [next(iter(runs.values())) for runs in together.values()]
    where = [] if one_place else differing([run.place for run in samples])
    places = [_named(run.settings, where) for run in samples]
    labels = _labels([name for name, _ in together], places, [run.settings for run in samples], one_place)
    folds: dict[str, set[Fold]] = {}
    for place, runs in zip(places, together.values(), strict=True):
        folds.setdefault(place, set()).update(runs)
    groups = [
        Group(label, place, dict(sorted(runs.items(), key=str)), frozenset(folds[place]))
        for label, place, runs in zip(labels, places, together.values(), strict=True)
    ]
    return _marked(groups), notes


def _labels(
    names: Sequence[str], places: Sequence[str], settings: Sequence[Mapping[str, Any]], one_place: bool
) -> list[str]:
    """The names, and to those that several groups of a place share what these differ in.

    Args:
        one_place: groups of different places stand together, and their labels tell.
    """
    rivals: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, place, tree in zip(names, places, settings, strict=True):
        rivals.setdefault((name, place), []).append(tree)
    where = [key for key in differing(settings) if is_place(key)] if one_place else []
    apart: dict[str, dict[str, None]] = {name: {} for name in names}
    for (name, _), trees in rivals.items():
        apart[name].update(dict.fromkeys(key for key in differing(trees) if not is_place(key)))
    return [
        ", ".join(part for part in (name, _named(tree, [*apart[name], *where])) if part)
        for name, tree in zip(names, settings, strict=True)
    ]


def _named(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`rank=4, shots=2`; digests only where nothing else tells."""
    plain = [key for key in keys if key.rpartition(".")[2] not in DIGESTS] or keys
    last = [key.rpartition(".")[2] for key in plain]
    shown = [
        short if last.count(short) == 1 and short != "name" else key for key, short in zip(plain, last, strict=True)
    ]
    return ", ".join(f"{short}={_value(settings.get(key))}" for key, short in zip(plain, shown, strict=True))


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "null" if value is None else str(value)


def _marked(groups: Sequence[Group]) -> list[Group]:
    """The groups with what sets their numbers apart from those of the first of their place."""
    first: dict[str, Group] = {}
    marked = []
    for group in groups:
        other = first.setdefault(group.place, group)
        marks = [f"{fold}: {run.state}" for fold, run in group.runs.items() if run.state != "finished"]
        common = group.runs.keys() & other.runs.keys()
        if differing([_place(group), _place(other)]) or any(
            group.runs[fold].partition != other.runs[fold].partition for fold in common
        ):
            marks.append(f"another partition than {other.label}")
        versions = {run.version for run in group.runs.values()} | {run.version for run in other.runs.values()}
        if len(versions) > 1:
            marks.append(f"fedpgp {' and '.join(sorted(versions))}")
        marked.append(replace(group, marks=tuple(marks)))
    return marked


def _place(group: Group) -> dict[str, Any]:
    return next(iter(group.runs.values())).place
