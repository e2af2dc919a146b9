"""Read runs from folders of runs, sweeps and storage roots, and check that they compare."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from fedpgp import __version__, config
from fedpgp.analysis import coverage
from fedpgp.analysis.comparison import Comparison, Group, Run, grouped
from fedpgp.analysis.splits import by_split
from fedpgp.config import differing
from fedpgp.core import provenance
from fedpgp.core.errors import ConfigError, RunError
from fedpgp.core.files import check_readable, folders_with
from fedpgp.data.sources import complete
from fedpgp.federation.metrics import last_evaluated, per_client_table, selections
from fedpgp.storage import copies
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, SweepFolder

HINT = "`--allow-mismatch` compares them, marked"


@dataclass(frozen=True)
class Entry:
    """A run to compare."""

    path: Path
    label: str | None = None
    """label of its group; None: its method and what differs from other groups"""
    strict: bool = False
    """an unusable run is an error if the user named it, and left out if it was found in a folder"""


@dataclass(frozen=True)
class Found:
    """Runs found in folders."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """missing runs of sweeps, and why"""
    selected: list[str] = field(default_factory=list)
    """metrics by which sweeps select settings"""

    def compare(self, allow_mismatch: bool = False) -> Comparison:
        """See `compare`."""
        return compare(self.entries, allow_mismatch, self.notes, self.selected)


class HasPath(Protocol):
    """A run or a sweep as an object."""

    path: Path


def paths_of(runs: HasPath | str | Path | Iterable[HasPath | str | Path]) -> list[Path]:
    """The folders of runs and sweeps, which may be given as paths or URIs already."""
    several = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    return [copies.local(one) if isinstance(one, str | Path) else one.path for one in several]


def find(paths: Sequence[Path]) -> Found:
    """Find the runs of folders of runs, folders of sweeps and storage roots, in the order of the folders.

    Raises:
        RunError: a folder is none of these, or a storage root without runs, or may not be read.
    """
    found = Found()
    for path in paths:
        check_readable(path)
        if (path / "identity.json").is_file():
            found.entries.append(Entry(path, strict=True))
        elif (path / "trials.json").is_file():
            _add_sweep(found, SweepFolder.open(path))
        elif folders_with(RunFolder.marker, path / "runs") or folders_with(RunFolder.marker, path):
            _add_root(found, path)
        else:
            raise RunError(f"{path}: not a run folder or a sweep folder, nor a storage root with runs")
    return found


def pair(first: Path, second: Path, allow_mismatch: bool = False) -> tuple[Run, Run, list[str]]:
    """Read two runs for a comparison client by client; the list says why they do not fully compare.

    Raises:
        RunError: one has not finished, or data, partition or protocol differ.
    """
    entries = [Entry(path, label=path.name, strict=True) for path in (first, second)]
    comparison = compare(entries, allow_mismatch)
    counted = [text for group in comparison.groups for text in group.coverage.values()]
    marks = dict.fromkeys([*comparison.groups[-1].marks, *comparison.notes, *counted])
    ours, theirs = by_split([read(first), read(second)])
    if ours.partition == theirs.partition:
        return ours, theirs, list(marks)
    what = f"different partitions ({ours.fold} and {theirs.fold}): a client holds other images in one than in the other"
    if not allow_mismatch:
        raise RunError(f"{ours.path.name} and {theirs.path.name} have {what}; {HINT}")
    return ours, theirs, [*marks, what]


def read(path: Path) -> Run:
    """Read a run from its folder.

    Raises:
        RunError: not a run folder, or made by a version of fedpgp with other settings.
    """
    store = RunFolder.open(path)
    identity, status = store.identity, store.status
    try:
        experiment = config.load(str(store.config_path))
    except ConfigError as error:
        version = identity.get("versions", {}).get("fedpgp", "unknown")
        other = f"{path}: made by fedpgp {version}, this is {__version__} and reads other settings: "
        raise RunError(f"{'' if version == __version__ else other}{error}") from None
    settings = config.dotted(
        complete(experiment),
        manifest=identity.get("manifest_digest"),
        weights=identity.get("weights_fingerprint"),
        plugins=identity.get("plugins"),
    )
    rounds = store.rounds()
    return Run(
        path=store.path,
        state=store.state,
        reason=status["reason"],
        fold=Fold(experiment.seed, experiment.protocol.held_out),
        settings={key: value for key, value in settings.items() if key not in ("seed", "protocol.held_out")},
        identity=identity,
        metrics=selections(rounds),
        rounds=rounds[-1].round if rounds else 0,
        bytes_up=sum(row.bytes_up for row in rounds),
        bytes_down=sum(row.bytes_down for row in rounds),
        seconds_per_round=fmean(sum(row.seconds.values()) for row in rounds) if rounds else 0.0,
        stretches=store.stretches,
        coverage=coverage.of_run(store),
    )


def compare(
    entries: Iterable[Entry], allow_mismatch: bool = False, notes: Sequence[str] = (), selected: Sequence[str] = ()
) -> Comparison:
    """Compare runs.

    Args:
        allow_mismatch: mark mismatches instead of raising an error.
        notes: known missing runs.
        selected: the metrics by which the settings were selected.

    Raises:
        RunError: a strict entry has not finished, or strict entries differ in data, partition, protocol or version.
    """
    lines = list(notes)
    usable = list(_usable(entries, allow_mismatch, lines))
    runs = by_split(_told_apart_by_images([run for _, run in usable]))
    members = [(entry, run) for (entry, _), run in zip(usable, runs, strict=True)]
    if not members:
        raise RunError("; ".join(["no finished run to compare", *lines]))
    if not allow_mismatch:
        _check_comparable([run for entry, run in members if entry.strict])
    lines += _made_with([run for _, run in members])
    groups, left_out = grouped([(entry.label, run) for entry, run in members], merge_scenarios=allow_mismatch)
    return Comparison(tuple(groups), (*lines, *left_out), tuple(dict.fromkeys(selected)))


@dataclass(frozen=True)
class Curve:
    """A metric over the rounds, mean over the runs of a group."""

    rounds: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    """standard deviation over the runs (ddof 1); 0 for one run"""
    megabytes: Sequence[float]
    """sent up and down so far, mean over the runs"""


def curve(group: Group, metric: str) -> Curve | None:
    """A metric of a group on test images over the rounds that all its runs measured; None if there are none."""
    name = f"test/{metric}"
    series: list[dict[int, tuple[float, float]]] = []
    for run in group.runs.values():
        sent, points = 0, {}
        for row in RunFolder.open(run.path).rounds():
            sent += row.bytes_up + row.bytes_down
            if name in row.metrics:
                points[row.round] = row.metrics[name], sent / 1e6
        series.append(points)
    rounds = sorted(set.intersection(*map(set, series))) if series else []
    if not rounds:
        return None
    values = np.array([[points[number] for number in rounds] for points in series])  # (runs, rounds, 2)
    std = values[:, :, 0].std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(rounds))
    mean, megabytes = values.mean(axis=0).T.tolist()
    return Curve(rounds, mean, std.tolist(), megabytes)


def client_accuracies(run: Path, metric: str) -> dict[str, float]:
    """Test accuracy in percent by client name in a run's last evaluated round; clients without a value are left out."""
    store = RunFolder.open(run)
    last = last_evaluated(store.rounds())
    table = None if last is None else per_client_table(store.clients(), last)
    if table is None or metric not in table.column_names:
        return {}
    names = store.identity["client_names"]
    rows = (row for row in table.to_pylist() if row["split"] == "test" and row[metric] is not None)
    return {names[row["client"]]: row[metric] for row in rows}


def client_counts(run: Path, metric: str) -> dict[int, tuple[int, int]]:
    """Correct answers and number of test images by client, in a run's last evaluated round, over all domains."""
    store = RunFolder.open(run)
    wanted = {"round": last_evaluated(store.rounds()), "split": "test", "metric": metric, "domain": None}
    rows = (row for row in store.clients().to_pylist() if wanted.items() <= row.items())
    return {row["client"]: (row["correct"], row["total"]) for row in rows}


def held_out_accuracies(group: Group) -> dict[str, dict[str, float]]:
    """Test accuracy by held-out domain and client, mean over the seeds that have both."""
    found: dict[str, dict[str, list[float]]] = {}
    for fold, run in group.runs.items():
        for name, value in client_accuracies(run.path, "held_out").items():
            found.setdefault(str(fold.held_out), {}).setdefault(name, []).append(value)
    return {domain: {name: float(np.mean(values)) for name, values in row.items()} for domain, row in found.items()}


def _add_root(found: Found, root: Path) -> None:
    """Add the runs of a storage root in the order in which they were made."""
    made = []
    for store in RunFolder.find(root):
        try:
            made.append((store.identity["created_ms"], store.path))
        except RunError as error:
            found.notes.append(f"left out: {error}")
    found.entries.extend(Entry(path) for _, path in sorted(made))


def _add_sweep(found: Found, folder: SweepFolder) -> None:
    """Add the runs of a sweep, labelled by its variants, and note missing ones."""
    variants = config.read_yaml(str(folder.path / "sweep.yaml")).get("variants") or {}
    results = folder.results()
    for trial in folder.trials:
        result = results.get(trial.id)
        if result is None:
            found.notes.append(f"trial {trial.label}: has not run")
            continue
        if result.state != "finished":
            found.notes.append(f"trial {trial.label}: {': '.join(filter(None, (result.state, result.reason)))}")
        label = max((name for name in variants if f"{trial.label}, ".startswith(f"{name}, ")), key=len, default=None)
        runs = {fold.fold: fold.run for fold in result.folds}
        found.entries.extend(Entry(folder.root / "runs" / name, label) for name in runs.values())
        found.notes.extend(f"trial {trial.label}: no run of {fold}" for fold in trial.folds if fold not in runs)
    found.selected.extend(folder.objectives.metrics)


def _usable(entries: Iterable[Entry], allow_mismatch: bool, notes: list[str]) -> Iterator[tuple[Entry, Run]]:
    """The runs that can be compared, each once; others raise an error or are noted."""
    unique: dict[Path, Entry] = {}
    for entry in entries:
        unique.setdefault(entry.path.absolute(), entry)
    for path, entry in unique.items():
        try:
            run = read(path)
        except RunError as error:
            if entry.strict:
                raise
            notes.append(f"left out: {error}")
            continue
        ended = ": ".join(filter(None, (run.state, run.reason)))
        if not run.metrics or (run.state != "finished" and not allow_mismatch):
            what = ended if run.metrics else f"{ended}, no evaluation"
            if entry.strict:
                hint = "; `--allow-mismatch` compares its rounds" if run.metrics else ""
                raise RunError(f"{run.path.name}: has not finished ({what}){hint}")
            notes.append(f"left out: {run.path.name} ({what})")
            continue
        yield entry, run


def _made_with(runs: Sequence[Run]) -> list[str]:
    """Notes on the versions and hardware that made the runs, if they differ among runs or among rounds of a run."""
    lines = []
    if changed := provenance.differing([stretch for run in runs for stretch in run.stretches]):
        lines.append(f"made with different {provenance.as_text(changed)}, which may change a number a little")
    for run in runs:
        if rounds := provenance.by_rounds(run.stretches, run.rounds):
            lines.append(f"{run.path.name}: {'; '.join(rounds)}")
    return lines


def _told_apart_by_images(runs: Sequence[Run]) -> list[Run]:
    """Add the setting `data.content` to the runs on data whose images were replaced between the runs.

    Runs on data with only one recorded digest stay as they are; beside several, a run without one has null.
    """
    digests: dict[Any, set[str]] = {}
    for run in runs:
        digests.setdefault(run.settings["data.digest"], set()).update(filter(None, [run.content]))
    return [
        replace(run, settings={**run.settings, "data.content": run.content})
        if len(digests[run.settings["data.digest"]]) > 1
        else run
        for run in runs
    ]


def _check_comparable(runs: Sequence[Run]) -> None:
    """Check that runs named one by one share scenario, partition and version."""
    for run in runs[1:]:
        first = runs[0]
        if keys := differing([first.scenario, run.scenario]):
            theirs = ", ".join(f"{key} is {first.scenario.get(key)} and {run.scenario.get(key)}" for key in keys)
            what = f"differ in data, partition or protocol: {theirs}"
        elif run.version != first.version:
            what = f"were made by different versions of fedpgp, {first.version} and {run.version}"
        else:
            continue
        raise RunError(f"{first.path.name} and {run.path.name} {what}; {HINT}")
    by_fold: dict[Fold, Run] = {}
    for run in runs:
        other = by_fold.setdefault(run.fold, run)
        if run.partition != other.partition:
            raise RunError(
                f"{other.path.name} and {run.path.name} have different partitions, {other.partition} and "
                f"{run.partition}; {HINT}"
            )
