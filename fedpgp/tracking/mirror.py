"""Keeping the mirror up to date: at once on request, or from a thread beside what is going on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fedpgp.core.errors import FedPGPError
from fedpgp.core.redaction import redacted
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder, TrialRef
from fedpgp.tracking.run_writer import RunWriter
from fedpgp.tracking.sweep_writer import SweepWriter

log = logging.getLogger("fedpgp.tracking")


def sync_run(run_dir: Path, uri: str, parent: TrialRef | None = None) -> str:
    """Bring the entries of a run up to date; what is there already is not sent again.

    Args:
        parent: the trial under which there is to be one; None: one at the top, if there is none at all.

    Returns:
        The id of the MLflow run, which is created if missing.

    Raises:
        RunError: `run_dir` is not the folder of a run.
        FedPGPError: MLflow cannot be reached, or refuses.
    """
    writer = _run_writer(run_dir, uri, parent)
    writer.push()
    return writer.run_id


def sync_sweep(sweep_dir: Path, uri: str, started: Mapping[str, Sequence[Path]] | None = None) -> str:
    """Bring the entries of a sweep, its trials and their folds up to date.

    Args:
        started: folders of runs by trial, of trials that have not ended.

    Returns:
        The id of the sweep's MLflow run.

    Raises:
        RunError: `sweep_dir` is not the folder of a sweep.
        FedPGPError: MLflow cannot be reached, or refuses.
    """
    for trial, runs in (started or {}).items():
        for run_dir in runs:
            sync_run(run_dir, uri, TrialRef(sweep_dir, trial))
    writer = SweepWriter(SweepFolder.open(sweep_dir), uri)
    writer.push()
    return writer.run_id


class _Writer(Protocol):
    def push(self) -> None: ...


class Mirror:
    """Keeps the entries of something that is going on up to date, from a thread of its own.

    A failing MLflow is told once, as a warning; every later poke tries again. Of a fold it is not told: the mirror of
    its sweep tells it, and brings the fold up to date when its trial ends.

    Args:
        folder: of a run or of a sweep.
        parent: the trial that a run is a fold of.
    """

    def __init__(self, folder: Path, uri: str, parent: TrialRef | None = None) -> None:
        self._folder, self._uri, self._parent = folder.absolute(), uri, parent
        self._writer: _Writer | None = None
        self._wake, self._closing, self._warned = threading.Event(), False, parent is not None
        self._thread = threading.Thread(target=self._loop, name="mlflow mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """There are new rows. Returns at once."""
        self._wake.set()

    def finish(self) -> None:
        """There will be no more rows: mirror what is left, the final status included. Returns at once."""
        self._closing = True
        self._wake.set()

    def close(self, timeout: float = 60.0) -> None:
        """As `finish`, waiting at most `timeout` seconds for it."""
        self.finish()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(f"MLflow at {redacted(self._uri)}: no answer for {timeout:g} seconds")

    def _loop(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing  # read before the push, so that the last push sees all rows
            try:
                self._writer = self._writer or self._open()
                self._writer.push()
            except FedPGPError as error:
                self._writer = None
                self._warn(str(error))

    def _open(self) -> _Writer:
        if (self._folder / "trials.json").is_file():
            return SweepWriter(SweepFolder.open(self._folder), self._uri)
        return _run_writer(self._folder, self._uri, self._parent)

    def _warn(self, what: str) -> None:
        if not self._warned:
            log.warning("%s; the run goes on, `fedpgp track sync %s` catches up", what, self._folder)
        self._warned = True


def _run_writer(run_dir: Path, uri: str, parent: TrialRef | None) -> RunWriter:
    store = RunFolder.open(run_dir)
    if parent is None:
        return RunWriter(store, uri)
    sweep = SweepWriter(SweepFolder.open(parent.sweep), uri)
    return RunWriter(store, uri, sweep.begin(parent.trial, store.identity["created_ms"]))
