"""What experiments and sweeps ask of a tracking service, without knowing which one it is."""

from pathlib import Path
from typing import Protocol

from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.storage.sweep_folder import TrialRef


class Tracker(Protocol):
    """Follows runs and sweeps by their callbacks. It is pickled and sent to the process in which a run takes place."""

    def run(self, experiment: Experiment, trial: TrialRef | None = None) -> RunCallback:
        """The callback of one run.

        Args:
            trial: the trial that the run is a fold of.
        """
        ...

    def sweep(self, folder: Path, experiment: Experiment) -> RunCallback:
        """The callback of the sweep in `folder`, whose trials are variations of `experiment`."""
        ...

    def close(self) -> None:
        """Wait until what has ended is recorded."""
        ...


class NoTracking:
    """Records nothing besides the files in the run folder."""

    def run(self, experiment: Experiment, trial: TrialRef | None = None) -> RunCallback:
        """A callback that does nothing."""
        return RunCallback()

    def sweep(self, folder: Path, experiment: Experiment) -> RunCallback:
        """A callback that does nothing."""
        return RunCallback()

    def close(self) -> None:
        """There is nothing to wait for."""
