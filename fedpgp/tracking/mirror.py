"""Update the mirror: once, on request, or from a thread while a run or sweep is going on."""

import logging
import threading
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from fedpgp.core.errors import FedPGPError
from fedpgp.core.redaction import redacted
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder, TrialRef
from fedpgp.tracking import connection
from fedpgp.tracking.mlflow_runs import Writer
from fedpgp.tracking.run_writer import RUN_TAG, RunWriter
from fedpgp.tracking.sweep_writer import SWEEP_TAG, SweepWriter

log = logging.getLogger("fedpgp.tracking")


def sync_run(run_dir: Path, uri: str, parent: TrialRef | None = None) -> str:
    """Update the MLflow runs of a run; what has been sent is not sent again.

    Args:
        parent: the trial that the run is a fold of; None: a new MLflow run is created at the top level.

    Returns:
        The id of the MLflow run, created if it is missing.

    Raises:
        RunError: `run_dir` is not the folder of a run.
        FedPGPError: MLflow cannot be reached or returns an error.
    """
    writer = _run_writer(run_dir, uri, parent)
    writer.push()
    return writer.run_id


def sync_sweep(sweep_dir: Path, uri: str, started: Mapping[str, Sequence[Path]] | None = None) -> str:
    """Update the MLflow runs of a sweep, its trials and their folds.

    Args:
        started: for each trial that has not ended, the folders of its runs.

    Returns:
        The id of the sweep's MLflow run.

    Raises:
        RunError: `sweep_dir` is not the folder of a sweep.
        FedPGPError: MLflow cannot be reached or returns an error.
    """
    for trial, runs in (started or {}).items():
        for run_dir in runs:
            sync_run(run_dir, uri, TrialRef(sweep_dir, trial))
    writer = SweepWriter(SweepFolder.open(sweep_dir), uri)
    writer.push()
    return writer.run_id


def stale_runs(uri: str, ended: Set[str]) -> list[str]:
    """Names of MLflow runs that are RUNNING although their run or sweep has ended, because its process was killed.

    Args:
        ended: values of `RUN_TAG` and `SWEEP_TAG` of the runs and sweeps that have ended.

    Raises:
        FedPGPError: the store cannot be read.
    """
    with connection.mlflow_errors(uri):
        client = connection.connect(uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
        return [
            str(run.info.run_name)
            for run in running
            if {run.data.tags.get(RUN_TAG), run.data.tags.get(SWEEP_TAG)} & ended
        ]


class Mirror:
    """Mirrors a run or sweep from a background thread while it is going on.

    If MLflow fails, it logs one warning and tries again at every later `notify`. For a fold it logs nothing: the mirror
    of its sweep does, and updates the fold when its trial ends.

    Args:
        folder: of a run or of a sweep.
        parent: the trial that a run is a fold of.
    """

    def __init__(self, folder: Path, uri: str, parent: TrialRef | None = None) -> None:
        self._folder, self._uri, self._parent = folder.absolute(), uri, parent
        self._writer: Writer | None = None
        self._wake, self._closing, self._warned = threading.Event(), False, parent is not None
        self._thread = threading.Thread(target=self._loop, name="mlflow mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Send new rows. Returns at once."""
        self._wake.set()

    def finish(self) -> None:
        """Send what is left, including the final status, and stop. Returns at once."""
        self._closing = True
        self._wake.set()

    def close(self, timeout: float = 60.0) -> None:
        """Finish, and wait for it for at most `timeout` seconds."""
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

    def _open(self) -> Writer:
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
