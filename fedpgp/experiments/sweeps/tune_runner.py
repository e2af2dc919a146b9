"""Run the trials of a sweep on Ray Tune: the process of a trial, and the callback that follows all of them."""

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from fedpgp.config import ResourceSettings
from fedpgp.core.callbacks import Event, EventStream, RunCallback
from fedpgp.core.errors import FedPGPError, Interrupted, RunError, StorageError
from fedpgp.core.files import TEMPORARY, is_full
from fedpgp.experiments import launch, runner
from fedpgp.experiments.planning import Library
from fedpgp.experiments.sweeps import schedulers, trial_runner
from fedpgp.experiments.sweeps.search import Search
from fedpgp.experiments.sweeps.sweep_settings import TuneSettings
from fedpgp.experiments.sweeps.trial_runner import Report, TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import Backend
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Result, SweepFolder

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
}
"""Tune prints nothing, writes no checkpoints, and stages no more trials than can start."""
REPORT_SECONDS = 1.0
"""Interval of reports to the driver, if no scheduler needs them at certain rounds."""
FORWARDED = ("on_message", "on_extract", "on_fold")
"""Events of folds that are sent to the driver of the sweep; it learns of rounds from reports."""


def run(
    settings: TuneSettings,
    folder: SweepFolder,
    todo: Sequence[TrialWork],
    search: Search | None,
    rounds: int,
    callback: RunCallback,
) -> None:
    """Run trials until each has a result.

    Args:
        todo: the trials to run.
        search: suggests more trials, and knows those to run first; None: there are no others.
        rounds: that a trial can have at most.

    Raises:
        Interrupted: after a signal.
        FedPGPError: the disk is full.
        StorageError: the object store cannot be used.
    """
    work = {one.id: one for one in todo} if search is None else search.work
    progress = ProgressCallback(folder, work, settings.scheduler, len(todo), callback)
    if search is None:
        space, options = {"trial": tune.grid_search(list(todo))}, {}
    else:
        space, options = {}, {"search_alg": search, "num_samples": -1}
        search.on_end = progress.end
    # Tune writes into a temporary folder that every node can see.
    scratch = tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.path, ignore_cleanup_errors=True)
    with _quiet(), scratch:
        tune.Tuner(
            # Work is sent in each trial's config: objects passed by `with_parameters` are never freed.
            tune.with_resources(SweepTrial, lambda config: _bundles(config["trial"])),
            param_space=space,
            tune_config=tune.TuneConfig(
                scheduler=schedulers.scheduler(settings, rounds),
                max_concurrent_trials=settings.max_concurrent,
                reuse_actors=True,
                **options,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch.name,
                verbose=0,
                callbacks=[progress],
                stop=progress.stopper,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    if progress.stopper.away is None:
        progress.close()
    error, total = search and search.error, folder.planned
    disk_full = progress.stopper.disk_full or (isinstance(error, OSError) and is_full(error))
    if error is not None and not disk_full:
        raise error
    left = total - sum(not result.disk_full for result in folder.results().values())
    if disk_full:
        raise FedPGPError(
            f"{folder.root}: disk full, {left} of {total} trials left; free disk space, then rerun with --resume"
        )
    if progress.stopper.away is not None:
        raise StorageError(
            f"{progress.stopper.away}; {left} of {total} trials left; "
            "what is stored there is kept, continue with --resume"
        )
    if left:
        raise Interrupted(
            f"stopped, {left} of {total} trials left; sweep folder: {folder.path}; continue with --resume"
        )


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    """Runs the trial in `config["trial"]`, then the next one it is given. A trial that raises ends as `failed`."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the process for its first trial."""
        self._library = Library()
        self._workers: tuple[ResourceSettings, Backend] | None = None
        self._events: list[Event] = []
        self._tracker: Tracker = config["trial"].tracker
        self._callback = EventStream(self._receive)
        self._stack = ExitStack()
        self._stack.enter_context(launch.forward_warnings(self._callback))
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the current trial, and prepare the next one."""
        self._reports.close()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run until the scheduler needs a report, or else for about a second, at least one round."""
        until = time.monotonic() + REPORT_SECONDS
        for report in self._reports:
            if self._trial.report_every or report.result or time.monotonic() > until:
                break
        events, self._events = self._events, []
        return {
            "rounds": report.round,
            **({"value": report.value} if report.value is not None else {}),
            "report": report,
            "events": events,
            "pid": os.getpid(),
            "done": report.result is not None,
        }

    def cleanup(self) -> None:
        """Leave the current trial, and close workers and tracker."""
        self._reports.close()
        if self._workers is not None:
            self._workers[1].close()
        self._tracker.close()
        self._stack.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._trial: TrialWork = config["trial"]
        self._reports = trial_runner.run(self._trial, self._backend, self._library, self._callback, self._tracker)

    def _backend(self) -> Backend:
        """The workers of the previous trial if the resources are the same, else new ones."""
        resources = self._trial.resources
        if self._workers is not None and self._workers[0] != resources:
            self._workers[1].close()
            self._workers = None
        if self._workers is None:
            self._workers = (resources, runner.make_backend(resources, threading.Event()))
        return self._workers[1]

    def _receive(self, event: Event) -> None:
        if event.method in FORWARDED:
            self._events.append(event)


class ProgressCallback(tune.Callback):  # type: ignore[misc]
    """Follows the trials of a sweep: those in `work`, by id, run now; `todo` of the recorded ones have not ended."""

    def __init__(
        self, folder: SweepFolder, work: Mapping[str, TrialWork], scheduler: str, todo: int, callback: RunCallback
    ) -> None:
        self._folder, self._work, self._callback = folder, work, callback
        self._scheduler, self._total = scheduler, folder.planned
        self._running: dict[str, Report] = {}
        self._ended = len(folder.trials) - todo
        self._failed = 0
        self._best: float | None = None
        self._better = max if folder.objectives.mode == "max" else min
        self.stopper = _Stopper()
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks, but they are never restored here."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Forward the events of a trial, and show its progress."""
        for event in result["events"]:
            event.replay(self._callback)
        self._running[trial.config["trial"].id] = result["report"]
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count a trial that ended, and record one that the scheduler stopped."""
        work = trial.config["trial"]
        report = self._running.pop(work.id, None)
        if report is None:  # stopped by a signal before its first report
            return
        result = report.result
        if result is None:
            reason = f"stopped at round {report.round} by {self._scheduler}"
            result = Result(work.id, "stopped", report.value, (), reason)
            with self._unless_away():
                result = replace(result, folds=trial_runner.begun(work))
                self._folder.record(result)
        elif report.away is not None:
            self.stopper.away = report.away
        self.end(work.label, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a trial whose process died, unless it has a result."""
        work = trial.config["trial"]
        self._running.pop(work.id, None)
        result = self._folder.result(work.id)
        if result is None:
            text = ""
            with suppress(OSError, TypeError):  # Tune recorded no file
                text = Path(trial.error_file).read_text(encoding="utf-8")
            last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no error message")
            result = Result(work.id, "failed", None, (), f"its process ended: {last}")
            try:
                with self._unless_away():
                    result = replace(result, folds=trial_runner.begun(work))
                    self._folder.record(result, text)
            except OSError as error:
                result = Result(work.id, "failed", None, (), f"{last}; {error}", is_full(error))
        self.end(work.label, result)

    def close(self) -> None:
        """Set the status of runs whose processes are gone but that are still `running`."""
        for work in self._work.values():
            result = self._folder.result(work.id)
            for fold in trial_runner.begun(work):
                uri = work.folds[0].experiment.storage.uri
                store = RunFolder.open(self._folder.root / "runs" / fold.run, uri)
                if store.state != "interrupted":
                    continue
                with suppress(RunError, OSError, StorageError), store.lock():  # in use by another sweep; or no room
                    if result is not None and result.state == "failed":
                        store.fail(str(result.reason))
                    else:
                        store.stop("stopped by the scheduler" if result else "stopped by a signal")

    @contextmanager
    def _unless_away(self) -> Iterator[None]:
        """End the sweep if the object store cannot be used; the trial then has no result."""
        try:
            yield
        except StorageError as error:
            self.stopper.away = str(error)

    def end(self, label: str, result: Result) -> None:
        """Count a trial that has ended."""
        self._ended += 1
        self._total = self._folder.planned  # a search may end early
        if result.state == "failed":
            self._failed += 1
            self._callback.on_message(f"{label} failed: {str(result.reason).splitlines()[0]}", warning=True)
            self.stopper.disk_full |= result.disk_full
        elif result.value is not None and result.state == "finished":
            self._best = result.value if self._best is None else self._better(self._best, result.value)
        self._show()

    def _show(self) -> None:
        parts = [f"best {self._best:.2f}"] if self._best is not None else []
        parts += [f"{self._failed} failed"] if self._failed else []
        parts += [f"{self._work[trial].label}: {one.note}" for trial, one in self._running.items() if not one.result]
        self._callback.on_trials(self._ended, self._total, " | ".join(parts))


class _Stopper(tune.Stopper):  # type: ignore[misc]
    """Ends the sweep once the disk is full or the object store cannot be used."""

    disk_full = False
    away: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.disk_full or self.away is not None


def _bundles(work: TrialWork) -> tune.PlacementGroupFactory:
    """One bundle for each client actor; an empty one for the trial itself, unless it computes because it is serial."""
    resources = work.resources
    each = {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor}
    if resources.backend == "serial":
        return tune.PlacementGroupFactory([each])
    return tune.PlacementGroupFactory([{}, *[each] * resources.actors])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Tune, and make SIGTERM end it as Ctrl-C does: trials are stopped, then it returns."""
    before = {key: os.environ.get(key) for key in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:
        on_sigterm = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, on_sigterm)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
