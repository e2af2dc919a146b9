"""What the driver of a sweep hears from its trials: told to the person, and recorded where a trial cannot itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from ray import tune

from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import RunError
from fedpgp.experiments.sweeps import trial_runner
from fedpgp.experiments.sweeps.trial_runner import Report, TrialWork
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Result, SweepFolder

DISK_FULL = os.strerror(errno.ENOSPC)


class ProgressCallback(tune.Callback):  # type: ignore[misc]
    """Follows the trials of a sweep.

    Args:
        work: the trials that are run now, by id.
        total: those of the sweep.
    """

    def __init__(
        self, folder: SweepFolder, work: Mapping[str, TrialWork], scheduler: str, total: int, callback: RunCallback
    ) -> None:
        self._folder, self._work, self._scheduler, self._total, self._callback = (
            folder,
            work,
            scheduler,
            total,
            callback,
        )
        self._running: dict[str, Report] = {}
        self._ended = total - len(work)
        self._failed = 0
        self._best: float | None = None
        self._mode = folder.head["mode"]
        self.stopper = _Stopper()
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nobody reads that."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial has come further."""
        for event in result["events"]:
            event.replay(self._callback)
        self._running[trial.config["trial"].id] = result["report"]
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended, by itself or early."""
        work = trial.config["trial"]
        report = self._running.pop(work.id, None)
        if report is None:  # stopped by a signal before it had got anywhere
            return
        result = report.result
        if result is None:
            reason = f"stopped at round {report.round} by {self._scheduler}"
            result = Result(work.id, "stopped", report.value, trial_runner.begun(work), reason)
            self._folder.record(result)
        self._end(work, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial has died."""
        work = trial.config["trial"]
        self._running.pop(work.id, None)
        if (recorded := self._folder.result(work.id)) is not None:  # after it had done its work
            self._end(work, recorded)
            return
        text = _text_of(trial)
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no word from it")
        result = Result(work.id, "failed", None, trial_runner.begun(work), f"its process ended: {last}")
        try:
            self._folder.record(result, text)
        except OSError as error:
            result = Result(work.id, "failed", None, (), f"{last}; {error}")
        self._end(work, result)

    def close(self) -> None:
        """All trial processes are gone: no run of theirs is left that says it is running."""
        for work in self._work.values():
            result = self._folder.result(work.id)
            for fold in trial_runner.begun(work):
                store = RunFolder.open(self._folder.root / "runs" / fold.run)
                if store.state != "interrupted":
                    continue
                try:
                    with store.lock():
                        if result is not None and result.state == "failed":
                            store.fail(str(result.reason))
                        else:
                            store.stop("not wanted any further" if result else "asked to stop")
                except (RunError, OSError):  # another sweep goes on with it; or the disk is full: it counts as killed
                    continue

    def _end(self, work: TrialWork, result: Result) -> None:
        self._ended += 1
        if result.state == "failed":
            self._failed += 1
            what = str(result.reason).splitlines()[0]
            self._callback.on_message(f"{work.label} failed: {what}", warning=True)
            if DISK_FULL in what:
                self.stopper.stop(f"{DISK_FULL}: free some under {self._folder.root}")
        elif result.value is not None and result.state == "finished":
            better = max if self._mode == "max" else min
            self._best = result.value if self._best is None else better(self._best, result.value)
        self._show()

    def _show(self) -> None:
        going = (item for item in self._running.items() if item[1].result is None)
        running = [f"{self._work[trial].label}: {report.note}" for trial, report in going]
        parts = [f"best {self._best:.2f}"] if self._best is not None else []
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += running
        self._callback.on_trials(self._ended, self._total, " | ".join(parts))


class _Stopper(tune.Stopper):  # type: ignore[misc]
    def __init__(self) -> None:
        self.why: str | None = None
        """None: it goes on"""

    def stop(self, why: str) -> None:
        """End the sweep."""
        self.why = why

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.why is not None


def _text_of(trial: Any) -> str:
    """What Tune knows of a failure."""
    try:
        with open(trial.error_file, encoding="utf-8") as file:
            return file.read()
    except (OSError, TypeError):
        return ""
