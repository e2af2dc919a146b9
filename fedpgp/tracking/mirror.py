"""Mirror runs and sweeps to MLflow: once, on request, or from a thread while they are going on."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Set
from pathlib import Path

from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError
from fedpgp.core.text import redacted
from fedpgp.experiments.tracker import Tracker
from fedpgp.storage.sweep_folder import SweepFolder, TrialRef
from fedpgp.tracking import connection
from fedpgp.tracking.connection import default_uri
from fedpgp.tracking.mlflow_runs import Writer
from fedpgp.tracking.writers import RUN_TAG, SWEEP_TAG, SweepWriter, run_writer

log = logging.getLogger("fedpgp.tracking")

PENDING = 2
"""Mirrors of finished runs that may still be sending while the next run is under way."""


def sync_run(run_dir: Path, uri: str, parent: TrialRef | None = None) -> str:
    """Send what is new of a run to MLflow; return the id of its MLflow run, which is created if it is missing.

    Args:
        parent: the trial that the run is a fold of; None: a new MLflow run is created at the top level.

    Raises:
        RunError: `run_dir` is not the folder of a run.
        FedPGPError: MLflow cannot be reached or returns an error.
    """
    writer = run_writer(run_dir, uri, parent)
    writer.push()
    return writer.run_id


def stale_runs(uri: str, ended: Set[str]) -> list[str]:
    """Names of MLflow runs that are RUNNING although their run or sweep has ended, because its process was killed.

    Args:
        ended: values of `RUN_TAG` and `SWEEP_TAG` of the runs and sweeps that have ended.
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

    If MLflow fails, it logs one warning and tries again at every later `notify`. For a fold, a run with a `parent`, it
    logs nothing: the mirror of its sweep does, and updates the fold when its trial ends.
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
        return run_writer(self._folder, self._uri, self._parent)

    def _warn(self, what: str) -> None:
        if not self._warned:
            log.warning("%s; the run goes on, `fedpgp track sync %s` catches up", what, self._folder)
        self._warned = True


class MLflowTracker(Tracker):
    """Mirrors run and sweep folders to MLflow, unless `tracking.mlflow` is false."""

    def __init__(self) -> None:
        self._ending: deque[Mirror] = deque()

    def run(self, experiment: Experiment, trial: TrialRef | None = None) -> RunCallback:
        """Mirror the run from the moment its folder exists."""
        return _Following(_uri(experiment), trial, self._end) if experiment.tracking.mlflow else RunCallback()

    def sweep(self, folder: Path, experiment: Experiment) -> RunCallback:
        """Mirror the sweep and its trials; their folds are mirrored where they run."""
        if not experiment.tracking.mlflow:
            return RunCallback()
        following = _Following(_uri(experiment), None, self._end)
        following.on_begin(str(folder), 0, 0)
        return following

    def close(self) -> None:
        """Wait until all mirrors have sent what is left; at most a minute each."""
        while self._ending:
            self._ending.popleft().close()

    def _end(self, mirror: Mirror) -> None:
        mirror.finish()
        self._ending.append(mirror)
        if len(self._ending) > PENDING:
            self._ending.popleft().close()


class _Following(RunCallback):
    """Mirrors the run or sweep that begins, and notifies the mirror of new rows and results."""

    def __init__(self, uri: str, parent: TrialRef | None, end: Callable[[Mirror], None]) -> None:
        self._uri, self._parent, self._end = uri, parent, end
        self._mirror: Mirror | None = None
        self._ended_trials = -1

    def on_begin(self, folder: str, done: int, total: int) -> None:
        """Start mirroring."""
        self._mirror = self._mirror or Mirror(Path(folder), self._uri, self._parent)
        self._notify()

    def on_round(self, folder: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """There is a new row."""
        self._notify()

    def on_trials(self, ended: int, total: int, summary: str) -> None:
        """A trial may have ended."""
        if ended != self._ended_trials:
            self._ended_trials = ended
            self._notify()

    def on_end(self, folder: str, state: str) -> None:
        """Send what is left, without waiting for it."""
        if self._mirror is not None:
            self._end(self._mirror)
            self._mirror = None

    def _notify(self) -> None:
        if self._mirror is not None:
            self._mirror.notify()


def _uri(experiment: Experiment) -> str:
    return experiment.tracking.uri or default_uri(experiment.storage.root)
