"""From folders to a comparison: runs read, refused where they do not fit, grouped and named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from fedpgp import __version__, config
from fedpgp.comparison import Comparison, Cost, Fold, Group, Run, differing, is_place
from fedpgp.errors import ConfigError, RunError
from fedpgp.evaluation import selections
from fedpgp.records import RoundRow
from fedpgp.store import RunStore
from fedpgp.sweeps.folder import SweepFolder

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


@dataclass(frozen=True)
class Found:
    """The runs that some folders stand for."""

    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()
    """what a sweep has no run of, and why"""
    selected: tuple[str, ...] = ()
    """the metrics that sweeps select by"""

    def compare(self, anyway: bool = False) -> Comparison:
        """See `compare`."""
        return compare(self.entries, anyway, self.notes, self.selected)


def find(paths: Sequence[Path]) -> Found:
    """The runs behind folders of runs, folders of sweeps and storage roots, in that order of the folders.

    Raises:
        RunError: a folder is none of these, or a storage root without a run.
    """
    parts = [_behind(path) for path in paths]
    return Found(
        tuple(entry for part in parts for entry in part.entries),
        tuple(note for part in parts for note in part.notes),
        tuple(metric for part in parts for metric in part.selected),
    )


def pair(first: Path, second: Path, anyway: bool = False) -> tuple[Run, Run, list[str]]:
    """Two runs to be held against each other client by client, and what sets them apart nonetheless.

    Raises:
        RunError: one has not finished, or they were not trained and tested on the same.
    """
    marks = compare([Entry(path, label=path.name, strict=True) for path in (first, second)], anyway).groups[-1].marks
    ours, theirs = read(first), read(second)
    if _partition(ours) == _partition(theirs):
        return ours, theirs, list(marks)
    what = f"different partitions ({ours.fold} and {theirs.fold}): a client holds other images in one than in the other"
    if not anyway:
        raise RunError(f"{ours.path.name} and {theirs.path.name} have {what}; `--anyway` compares them, marked")
    return ours, theirs, [*marks, what]


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
    rounds = store.rounds()
    return Run(
        path=store.path,
        state=store.state,
        reason=status["reason"],
        fold=Fold(experiment.seed, experiment.protocol.held_out),
        settings=_settings(experiment, identity),
        identity=identity,
        metrics=selections(rounds),
        cost=_cost(rounds),
    )


def compare(
    entries: Iterable[Entry], anyway: bool = False, notes: Sequence[str] = (), selected: Sequence[str] = ()
) -> Comparison:
    """Put runs side by side.

    Args:
        anyway: compare what would be refused, marked.
        notes: what is known already to be missing.
        selected: the metrics by which the settings were selected.

    Raises:
        RunError: a run that was named has not finished, or two of them were not trained and tested on the same.
    """
    said = list(notes)
    members = list(_usable(entries, anyway, said))
    if not members:
        raise RunError("; ".join(["no finished run to compare", *said]))
    _refuse_mixture([run for entry, run in members if entry.strict], anyway)
    groups = _marked(_grouped(members, one_place=anyway, notes=said))
    return Comparison(tuple(groups), tuple(said), tuple(dict.fromkeys(selected)))


def _behind(path: Path) -> Found:
    if (path / "identity.json").is_file():
        return Found((Entry(path, strict=True),))
    if (path / "trials.json").is_file():
        return _of_sweep(SweepFolder.open(path))
    if not any(path.glob("runs/*/identity.json")) and not any(path.glob("*/identity.json")):
        raise RunError(f"{path}: not the folder of a run or of a sweep, nor a storage root with runs")
    stores = sorted(RunStore.find(path), key=lambda store: store.identity["created_ms"])
    return Found(tuple(Entry(store.path) for store in stores))


def _of_sweep(folder: SweepFolder) -> Found:
    """A sweep's folds, called by its variants; those that it has no run of are noted."""
    variants = yaml.safe_load(folder.spec_yaml).get("variants") or {}
    results = folder.results()
    entries, notes = [], []
    for trial in folder.trials:
        result = results.get(trial.id)
        if result is None or result.state != "finished":
            ended = "has not run" if result is None else ": ".join(filter(None, (result.state, result.reason)))
            notes.append(f"trial {trial.label}: {ended}")
        runs = {Fold(fold.seed, fold.held_out): fold.run for fold in result.folds} if result else {}
        label = max((name for name in variants if f"{trial.label}, ".startswith(f"{name}, ")), key=len, default=None)
        entries += [Entry(folder.root / "runs" / name, label) for name in runs.values()]
        if result is not None:
            lacking = [Fold(fold.seed, fold.held_out) for fold in trial.folds]
            notes += [f"trial {trial.label}: no run of {fold}" for fold in lacking if fold not in runs]
    return Found(tuple(entries), tuple(notes), (folder.head["metric"],))


def _cost(rounds: Sequence[RoundRow]) -> Cost:
    return Cost(
        rounds=rounds[-1].round if rounds else 0,
        bytes_up=sum(row.bytes_up for row in rounds),
        bytes_down=sum(row.bytes_down for row in rounds),
        seconds_per_round=fmean(sum(row.seconds.values()) for row in rounds) if rounds else 0.0,
    )


def _settings(experiment: config.Experiment, identity: Mapping[str, Any]) -> dict[str, Any]:
    """All that can change a number, but for what folds differ by."""
    found = config.dotted(
        experiment, manifest=identity.get("manifest_digest"), weights=identity.get("weights_fingerprint")
    )
    return {key: value for key, value in found.items() if key not in ("seed", "protocol.held_out")}


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
