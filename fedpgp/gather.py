"""From folders to a comparison: runs read, refused where they do not fit, grouped and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fedpgp import __version__, config
from fedpgp.comparison import Comparison, Fold, Group, Run, differing, is_place
from fedpgp.errors import ConfigError, RunError
from fedpgp.evaluation import selections
from fedpgp.store import RunStore

DIGESTS = ("digest", "fingerprint")
"""Settings that are digests of what a path leads to."""


@dataclass(frozen=True)
class Entry:
    """A run to compare."""

    path: Path
    label: str | None = None
    """what its group is called; None: by what it differs in from the others"""
    strict: bool = False
    """true: named by the user, hence refused if it does not fit; false: found in a folder, hence left out"""


def read(path: Path) -> Run:
    """One run from its folder.

    Raises:
        RunError: not the folder of a run, or of a version of fedpgp that had other settings.
    """
    store = RunStore.open(path)
    identity, status = store.identity, store.status
    try:
        experiment = config.parse(yaml.safe_load(store.config_yaml), source="config.yaml")
    except (ConfigError, yaml.YAMLError) as error:
        version = identity.get("versions", {}).get("fedpgp", "unknown")
        raise RunError(
            f"{path}: made by fedpgp {version}, this is {__version__} and reads other settings: {error}"
        ) from None
    return Run(
        path=store.path,
        state=store.state,
        reason=status["reason"],
        fold=Fold(experiment.seed, experiment.protocol.held_out),
        settings=_settings(experiment, identity),
        identity=identity,
        metrics=selections(store.rounds()),
    )


def compare(entries: Iterable[Entry], anyway: bool = False, selected: Sequence[str] = ()) -> Comparison:
    """Put runs side by side.

    Args:
        anyway: compare what would be refused, marked.

    Raises:
        RunError: a run that was named has not finished, or two of them were not trained and tested on the same.
    """
    notes: list[str] = []
    members = list(_usable(entries, anyway, notes))
    if not members:
        raise RunError("; ".join(["no finished run to compare", *notes]))
    _refuse_mixture([run for entry, run in members if entry.strict], anyway)
    groups = _marked(_grouped(members, one_place=anyway, notes=notes))
    return Comparison(tuple(groups), tuple(notes), tuple(dict.fromkeys(selected)))


def _settings(experiment: config.Experiment, identity: Mapping[str, Any]) -> dict[str, Any]:
    """All that can change a number as dotted keys; what paths lead to stands there by its digest."""
    tree = experiment.model_dump(mode="json", exclude={"name", "seed", "resources", "tracking", "storage"})
    del tree["data"]["root"], tree["backbone"]["weights"], tree["backbone"]["class_chunk"], tree["protocol"]["held_out"]
    tree["data"] |= {"template": experiment.data.prompt, "digest": identity.get("manifest_digest")}
    tree["backbone"]["fingerprint"] = identity.get("weights_fingerprint")
    return {f"{section}.{key}": value for section, values in tree.items() for key, value in values.items()}


def _usable(entries: Iterable[Entry], anyway: bool, notes: list[str]) -> Iterator[tuple[Entry, Run]]:
    """The runs that can be compared, each once; why others cannot is raised or noted."""
    seen: set[Path] = set()
    for entry in entries:
        if (path := entry.path.absolute()) in seen:
            continue
        seen.add(path)
        try:
            run = read(path)
        except RunError as error:
            if entry.strict:
                raise
            notes.append(f"left out: {error}")
            continue
        ended = run.state + (f": {run.reason}" if run.reason else "")
        if not run.metrics or (run.state != "finished" and not anyway):
            what = ended if run.metrics else f"{ended}, nothing was evaluated"
            if entry.strict:
                hint = "; `--anyway` compares what there is" if run.metrics else ""
                raise RunError(f"{run.path.name}: has not finished ({what}){hint}")
            notes.append(f"left out: {run.path.name} ({what})")
            continue
        yield entry, run


def _refuse_mixture(runs: Sequence[Run], anyway: bool) -> None:
    """Runs that were named one by one must be of one place, partition and version."""
    if anyway or not runs:
        return
    first = runs[0]
    for run in runs[1:]:
        if keys := differing([first.place, run.place]):
            theirs = ", ".join(f"{key} is {first.place.get(key)} and {run.place.get(key)}" for key in keys)
            what = f"were not trained and tested on the same: {theirs}"
        elif run.version != first.version:
            what = f"were made by different versions of fedpgp, {first.version} and {run.version}"
        else:
            continue
        raise RunError(f"{first.path.name} and {run.path.name} {what}; `--anyway` compares them, marked")
    by_fold: dict[Fold, Run] = {}
    for run in runs:
        other = by_fold.setdefault(run.fold, run)
        if _partition(run) != _partition(other):
            raise RunError(
                f"{other.path.name} and {run.path.name} have different partitions, {_partition(other)} and "
                f"{_partition(run)}; `--anyway` compares them, marked"
            )


def _grouped(members: Sequence[tuple[Entry, Run]], one_place: bool, notes: list[str]) -> list[Group]:
    """Runs of equal settings together, named by what sets them apart."""
    together: dict[tuple[str, str], dict[Fold, Run]] = {}
    for entry, run in members:
        key = (entry.label or str(run.settings["method.name"]), json.dumps(run.settings, sort_keys=True))
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
    return [
        Group(label, place, dict(sorted(runs.items(), key=str)), frozenset(folds[place]))
        for label, place, runs in zip(labels, places, together.values(), strict=True)
    ]


def _labels(
    names: Sequence[str], places: Sequence[str], settings: Sequence[Mapping[str, Any]], one_place: bool
) -> list[str]:
    """The names, and to those that several groups of a place share what these differ in."""
    rivals: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for name, place, tree in zip(names, places, settings, strict=True):
        rivals.setdefault((name, place), []).append(tree)
    apart: dict[str, dict[str, None]] = {}
    for (name, _), trees in rivals.items():
        keys = (key for key in differing(trees) if one_place or not is_place(key))
        apart.setdefault(name, {}).update(dict.fromkeys(keys))
    return [
        ", ".join(part for part in (name, _named(tree, list(apart[name]))) if part)
        for name, tree in zip(names, settings, strict=True)
    ]


def _named(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`rank=4, shots=2`; digests only where nothing else tells."""
    plain = [key for key in keys if key.rpartition(".")[2] not in DIGESTS] or keys
    last = [key.rpartition(".")[2] for key in plain]
    shown = [
        short if last.count(short) == 1 and short != "name" else key for key, short in zip(plain, last, strict=True)
    ]
    return ", ".join(f"{short}={settings.get(key)}" for key, short in zip(plain, shown, strict=True))


def _marked(groups: Sequence[Group]) -> list[Group]:
    """The groups with what sets their numbers apart from those of the first of their place."""
    first: dict[str, Group] = {}
    marked = []
    for group in groups:
        other = first.setdefault(group.place, group)
        marks = [f"{fold}: {run.state}" for fold, run in group.runs.items() if run.state != "finished"]
        common = group.runs.keys() & other.runs.keys()
        if differing([_place(group), _place(other)]) or any(
            _partition(group.runs[fold]) != _partition(other.runs[fold]) for fold in common
        ):
            marks.append(f"another partition than {other.label}")
        versions = {run.version for run in group.runs.values()} | {run.version for run in other.runs.values()}
        if len(versions) > 1:
            marks.append(f"fedpgp {' and '.join(sorted(versions))}")
        marked.append(replace(group, marks=tuple(marks)))
    return marked


def _place(group: Group) -> dict[str, Any]:
    return next(iter(group.runs.values())).place


def _partition(run: Run) -> str:
    return str(run.identity.get("partition_digest"))
