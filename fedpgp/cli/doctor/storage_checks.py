"""Check a storage root without changing it: feature caches, runs, sweeps, and their mirror in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
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
from fedpgp.tracking.sweep_writer import tag_of

FILE = "sqlite:///"
"""Scheme of an MLflow store in a file. Opening a missing one would create it."""


def examine(experiment: Experiment) -> Iterator[Finding]:
    """Check everything below `storage.root`."""
    root = experiment.storage.root.expanduser().absolute()
    whole, errors = feature_cache.scan(root / "features")
    yield from (problem("caches", str(error)) for error in errors)
    if whole or not errors:
        images, num_bytes = sum(one.images for one in whole), sum(one.num_bytes for one in whole)
        yield ok("caches", f"{len(whole)} whole, {images:,} images, {disk_size(num_bytes)}" if whole else "none yet")
    ended: set[str] = set()
    yield from _folders("run", root / "runs", _run, ended)
    yield from _folders("sweep", root / "sweeps", _sweep, ended)
    if experiment.tracking.mlflow:
        yield _mirror(root, experiment.tracking.uri, ended)


def _folders(
    kind: str, folder: Path, read: Callable[[Path], tuple[StatusFolder, str]], ended: set[str]
) -> Iterator[Finding]:
    """One problem for each damaged run or sweep, and one line for all others.

    Args:
        read: opens a folder and reads all that a report needs; returns it and the value of its tag in MLflow.
        ended: the tags of those that have ended are added to it.
    """
    states: Counter[str] = Counter()
    interrupted, damaged = [], False
    for path in sorted(path for path in folder.glob("[!.]*") if path.is_dir()):
        try:
            found, tag = read(path)
            state = found.state
        except (RunError, OSError) as error:
            what = f"{path}: cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
            yield problem(f"{kind}s", what, "resume it if it is to go on, else move the folder away")
            damaged = True
            continue
        states[state] += 1
        if state == "interrupted":
            interrupted.append(path.name)
        if state != "running":
            ended.add(tag)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    if interrupted:
        killed = f"{counts}: killed was {', '.join(interrupted)}"
        yield warning(f"{kind}s", killed, f"fedpgp {kind} CONFIG --resume goes on with it")
    elif counts or not damaged:
        yield ok(f"{kind}s", counts or "none yet")


def _run(path: Path) -> tuple[StatusFolder, str]:
    store = RunFolder.open(path)
    store.rounds()
    if store.state == "finished" and store.summary is None:
        raise RunError(f"{path}: says that it is finished, but has no summary.json")
    return store, str(store.identity["id"])


def _sweep(path: Path) -> tuple[StatusFolder, str]:
    folder = SweepFolder.open(path)
    folder.results()
    return folder, tag_of(folder.head)


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
