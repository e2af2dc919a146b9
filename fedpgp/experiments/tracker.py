"""What experiments and sweeps ask of a tracking service, without knowing which one it is."""

from pathlib import Path

from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.storage.sweep_folder import TrialRef


class Tracker:
    """Follows runs and sweeps by their callbacks. This base class records nothing besides the files in their folders.

    A tracker is pickled and sent to the process in which a run takes place.
    """

    def settled(self, experiment: Experiment) -> Experiment:
        """Fill in what the service knows of the settings. Called before any work.

        Raises `UserError` if nothing can ever be recorded with them.
        """
        return experiment

    def load(self, experiment: Experiment) -> None:
        """Load the libraries that the service needs, in a thread, while a run waits for its workers."""

    def run(self, experiment: Experiment, trial: TrialRef | None = None) -> RunCallback:
        """The callback of one run, which may be a fold of a trial."""
        return RunCallback()

    def sweep(self, folder: Path, experiment: Experiment) -> RunCallback:
        """The callback of the sweep in `folder`, whose trials are variations of `experiment`."""
        return RunCallback()

    def close(self) -> None:
        """Wait until what has ended is recorded."""
