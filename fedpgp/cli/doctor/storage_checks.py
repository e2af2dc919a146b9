"""Check a storage root without changing it: feature caches, runs, sweeps, and their mirror in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedpgp import tracking
from fedpgp.cli.doctor.findings import Finding, ok, problem, warning
from fedpgp.clip import feature_cache
from fedpgp.config import Experiment
from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.core.text import disk_size
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.status_folder import StatusFolder
from fedpgp.storage.sweep_folder import SweepFolder
from fedpgp.tracking.mirror import stale_runs
from fedpgp.tracking.writers import sweep_tag

FILE = "sqlite:///"
"""Scheme of an MLflow store in a file. Opening a missing one would create it."""


def examine(experiment: Experiment) -> Iterator[Finding]:
    """Check everything below `storage.root`."""
    root = experiment.storage.root.expanduser().absolute()
    yield from _caches(root / "features")
    runs, sweeps = _Folders.of(root / "runs", _run), _Folders.of(root / "sweeps", _sweep)
    yield from runs.findings("runs", "fedpgp run CONFIG --resume goes on with it")
    yield from sweeps.findings("sweeps", "fedpgp sweep CONFIG --resume goes on with it")
    if experiment.tracking.mlflow:
        yield _mirror(root, experiment.tracking.uri, runs.ended | sweeps.ended)


def _caches(folder: Path) -> Iterator[Finding]:
    whole, errors = feature_cache.scan(folder)
    yield from (problem("caches", str(error)) for error in errors)
    if whole or not errors:
        images, num_bytes = sum(images for images, _ in whole), sum(num_bytes for _, num_bytes in whole)
        yield ok("caches", f"{len(whole)} whole, {images:,} images, {disk_size(num_bytes)}" if whole else "none yet")


@dataclass
class _Folders:
    """The runs, or the sweeps, of a storage root."""

    states: Counter[str] = field(default_factory=Counter)
    interrupted: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """error message by name"""
    ended: set[str] = field(default_factory=set)
    """by the value of their tag in MLflow"""

    @classmethod
    def of(cls, folder: Path, read: Callable[[Path], tuple[StatusFolder, str]]) -> _Folders:
        """Read all folders.

        Args:
            read: opens a folder and reads all that a report needs; returns it and the value of its tag in MLflow.
        """
        found = cls()
        for path in sorted(path for path in folder.glob("[!.]*") if path.is_dir()):
            try:
                one, known_as = read(path)
                state = one.state
            except RunError as error:
                found.damaged[path.name] = str(error)
            except OSError as error:
                found.damaged[path.name] = f"{path}: cannot be read ({error.strerror})"
            else:
                found.states[state] += 1
                if state == "interrupted":
                    found.interrupted.append(path.name)
                if state != "running":
                    found.ended.add(known_as)
        return found

    def findings(self, name: str, advice: str) -> Iterator[Finding]:
        """One problem for each damaged folder, and one line for all others."""
        for what in self.damaged.values():
            yield problem(name, what, "resume it if it is to go on, else move the folder away")
        counts = ", ".join(f"{number} {state}" for state, number in sorted(self.states.items()))
        if self.interrupted:
            yield warning(name, f"{counts}: killed was {', '.join(self.interrupted)}", advice)
        elif counts or not self.damaged:
            yield ok(name, counts or "none yet")


def _run(path: Path) -> tuple[StatusFolder, str]:
    store = RunFolder.open(path)
    store.rounds()
    if store.state == "finished" and store.summary is None:
        raise RunError(f"{path}: says that it is finished, but has no summary.json")
    return store, str(store.identity["id"])


def _sweep(path: Path) -> tuple[StatusFolder, str]:
    folder = SweepFolder.open(path)
    folder.results()
    return folder, sweep_tag(folder.head)


def _mirror(root: Path, given: str | None, ended: set[str]) -> Finding:
    uri = given or tracking.default_uri(root)
    if uri.startswith(FILE) and not Path(uri.removeprefix(FILE)).is_file():
        return ok("tracking", f"no MLflow store at {uri} yet; the first run makes one")
    try:
        stale = stale_runs(uri, ended)
    except FedPGPError as error:
        return warning("tracking", str(error), "runs go on without it; once it is back: fedpgp track sync STORAGE_ROOT")
    if stale:
        return warning("tracking", f"{uri}: RUNNING there, but ended: {', '.join(stale)}", f"fedpgp track sync {root}")
    return ok("tracking", f"{uri} opens, and what is RUNNING there is running")
