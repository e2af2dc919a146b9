"""Follow experiments and sweeps into MLflow, by their callbacks."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.storage.sweep_folder import TrialRef
from fedpgp.tracking.connection import default_uri
from fedpgp.tracking.mirror import Mirror

PENDING = 2
"""Mirrors of finished runs that may still be sending while the next run is under way."""


class MLflowTracker:
    """A `Tracker` that mirrors run and sweep folders to MLflow, unless `tracking.mlflow` is false."""

    def __init__(self) -> None:
        self._ending: deque[Mirror] = deque()

    def run(self, experiment: Experiment, trial: TrialRef | None = None) -> RunCallback:
        """Mirror the run from the moment its folder exists."""
        if not experiment.tracking.mlflow:
            return RunCallback()
        uri = _uri(experiment)
        return _Following(lambda folder: Mirror(Path(folder), uri, trial), self._end)

    def sweep(self, folder: Path, experiment: Experiment) -> RunCallback:
        """Mirror the sweep and its trials; their folds are mirrored where they run."""
        if not experiment.tracking.mlflow:
            return RunCallback()
        following = _Following(lambda _: Mirror(folder, _uri(experiment)), self._end)
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
    """Notifies a mirror of new rows and results."""

    def __init__(self, start: Callable[[str], Mirror], end: Callable[[Mirror], None]) -> None:
        self._start, self._end = start, end
        self._mirror: Mirror | None = None
        self._ended_trials = -1

    def on_begin(self, folder: str, done: int, total: int) -> None:
        """Start mirroring."""
        self._notify(folder)

    def on_round(self, folder: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """There is a new row."""
        self._notify(folder)

    def on_trials(self, ended: int, total: int, summary: str) -> None:
        """A trial may have ended."""
        if ended != self._ended_trials:
            self._ended_trials = ended
            self._notify("")

    def on_end(self, folder: str, state: str) -> None:
        """Send what is left, without waiting for it."""
        if self._mirror is not None:
            self._end(self._mirror)
            self._mirror = None

    def _notify(self, folder: str) -> None:
        self._mirror = self._mirror or self._start(folder)
        self._mirror.notify()


def _uri(experiment: Experiment) -> str:
    return experiment.tracking.uri or default_uri(experiment.storage.root)
