"""Run the folds of one trial, a few rounds at a time. Independent of Ray Tune."""

import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import RunError, StorageError
from fedpgp.core.files import is_full, locked, make_folder
from fedpgp.core.plugins import Code
from fedpgp.core.text import redacted
from fedpgp.experiments import planning, runner
from fedpgp.experiments.planning import Library
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import Backend, Common, Job
from fedpgp.federation.metrics import RoundRow
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialRef

E = TypeVar("E", bound=BaseException)
Stored = Mapping[str, Sequence[RunFolder]]
"""Runs by the digest of their settings, newest first."""
WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class FoldWork:
    """A fold to run."""

    fold: Fold
    experiment: Experiment
    digest: str
    """of its run"""
    content: str | None = None
    """digest of its images"""

    def runs(self, stored: Stored | None = None) -> list[RunFolder]:
        """List its runs under any name, newest first, of those `stored`; None: list these first."""
        return [store for store in (stored or stored_runs([self]))[self.digest] if store.has_images(self.content)]

    def newest(self, *states: str, stored: Stored | None = None) -> RunFolder | None:
        """Return the newest of `runs` in one of these states, or None."""
        return next((store for store in self.runs(stored) if store.state in states), None)


def stored_runs(folds: Sequence[FoldWork]) -> Stored:
    """List the runs of the settings of folds, whatever their images, with one look at their storage."""
    storage = folds[0].experiment.storage
    return RunFolder.by_digest(storage.root, [one.digest for one in folds], storage.uri)


@dataclass(frozen=True)
class TrialWork:
    """A trial to run; it is sent to the process that runs it."""

    sweep: Path
    id: str
    label: str
    folds: tuple[FoldWork, ...]
    objectives: Objectives
    report_every: int | None
    """rounds between two reports to an early-stopping scheduler; None: no scheduler needs them"""
    force: bool
    """repeat finished folds, too"""
    tracker: Tracker
    code: tuple[Code, ...] = ()
    """of plug-ins: unpickling it makes them importable there"""

    @property
    def root(self) -> Path:
        """The storage root."""
        return self.sweep.parent.parent

    @property
    def metric(self) -> str:
        """The metric that is shown while it runs, and by which a scheduler compares it."""
        return self.objectives.metrics[0]

    @property
    def resources(self) -> ResourceSettings:
        """The resources of every fold."""
        return self.folds[0].experiment.resources


@dataclass(frozen=True)
class Report:
    """Progress of a trial."""

    round: int
    """that all folds have reached; without `report_every`, the round of the running fold"""
    value: float | None
    """mean of the metric over folds at that round; None: not measured"""
    note: str = ""
    result: Result | None = None
    """once the trial has ended"""
    away: str | None = None
    """why the object store could not be used; then the result is not recorded, and the trial is left to be resumed"""


def run(
    work: TrialWork, workers: Callable[[], Backend], library: Library, callback: RunCallback, tracker: Tracker
) -> Generator[Report, None, None]:
    """Run the folds of a trial that have not finished in this storage root, and record the result.

    Folds run one after another. With `report_every` they take turns of so many rounds, and each report is the mean over
    all folds at the same round. If the generator is closed early, its runs are `stopped` and no result is recorded.
    `workers` is called once there is something to run, and the workers stay open.
    """
    sweep = SweepFolder.open(work.sweep, work.folds[0].experiment.storage.uri)
    try:
        with ExitStack() as stack:
            for digest in sorted(one.digest for one in work.folds):  # the same order everywhere avoids deadlocks
                while not _acquire(stack, sweep.root, digest):
                    yield Report(0, None, "waiting for another sweep that runs it")
                    time.sleep(WAIT_SECONDS)
            shared = SharedWorkers(workers)
            folds = [
                _FoldRunner(one, _fold_rounds(one, work, Lease(shared), library, callback, tracker))
                for one in work.folds
            ]
            for fold in folds:
                stack.callback(fold.rounds.close)
            yield from _rounds(work, folds, callback)
            runs = tuple(FoldRun.of(f.work.fold, f.path.name) for f in folds if f.path)
        result = finished(work, runs)
        sweep.record(result)
        report = Report(folds[0].round, result.value, result=result)
    except Exception as error:
        away, runs = _cause(error, StorageError), ()
        try:
            runs = begun(work)
        except StorageError as unreachable:
            away = away or unreachable
        if away is not None:
            result = Result(work.id, "failed", None, (), runner.reason(error))
            yield Report(0, None, result=result, away=redacted(str(away)))
            return
        result = Result(work.id, "failed", None, runs, runner.reason(error), _is_disk_full(error))
        with suppress(OSError, StorageError):  # the disk may be full; the report carries the result, too
            sweep.record(result, redacted("".join(traceback.format_exception(error))))
        report = Report(0, None, result=result)
    yield report


def finished(work: TrialWork, runs: tuple[FoldRun, ...]) -> Result:
    """The result of a trial whose folds have finished.

    Each value is the mean of a metric over the runs, after the last round of each; None: some run did not measure it.
    """
    rounds = [RunFolder.open(work.root / "runs" / one.run).rounds() for one in runs]
    values = tuple(_mean([_last(rows, metric) for rows in rounds]) for metric in work.objectives.metrics)
    value = work.objectives.value(values)
    return Result(work.id, "finished", value, runs, values=values if len(values) > 1 else ())


def earlier(folder: SweepFolder, work: Sequence[TrialWork]) -> list[tuple[Result | None, bool]]:
    """What earlier runs give each trial: its result, and whether its images have been replaced since it had one.

    There is a result if the trial ended in this sweep, or its folds all finished in other sweeps.
    """
    stored = stored_runs([fold for one in work for fold in one.folds]) if work else {}
    found: list[tuple[Result | None, bool]] = []
    for one in work:
        result = folder.result(one.id)
        held = {store.path.name: store.has_images(fold.content) for fold in one.folds for store in stored[fold.digest]}
        replaced = result is not None and any(not held.get(fold.run, True) for fold in result.folds)
        runs = [(each.fold, each.newest("finished", stored=stored)) for each in one.folds]
        own = tuple(FoldRun.of(fold, run.path.name) for fold, run in runs if run)
        if len(own) == len(runs):
            result = finished(one, own)
        elif result is not None and (result.state == "finished" or result.disk_full or replaced):
            result = None  # finished: its runs were removed, or its data changed
        found.append((result, replaced))
    return found


def begun(work: TrialWork) -> tuple[FoldRun, ...]:
    """The newest run of every fold that has one, in any state."""
    found = [(one.fold, one.runs()) for one in work.folds]
    return tuple(FoldRun.of(fold, stores[0].path.name) for fold, stores in found if stores)


@dataclass
class SharedWorkers:
    """Workers that several folds use in turn."""

    open: Callable[[], Backend]
    loaded: Job | None = None


@dataclass
class Lease:
    """The backend of one fold: shared workers, into which its job is loaded whenever they hold another one."""

    shared: SharedWorkers
    job: Any = None

    def load(self, job: Job) -> None:
        """Keep the job for `map`."""
        self.job = job

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """See `Backend.map`."""
        workers = self.shared.open()
        if self.shared.loaded is not self.job:
            workers.load(self.job)
            self.shared.loaded = self.job
        return workers.map(method, calls, common, work)

    def close(self) -> None:
        """Do nothing: the workers are shared."""


@dataclass
class _FoldRunner:
    """Runs one fold, a round at a time."""

    work: FoldWork
    rounds: Generator[RoundRow, None, Path]
    rows: list[RoundRow] = field(default_factory=list)
    path: Path | None = None
    """once it has finished"""

    @property
    def round(self) -> int:
        """The last round."""
        return self.rows[-1].round if self.rows else 0

    def advance(self) -> bool:
        """Run one round; return whether one was left."""
        if self.path is None:
            try:
                self.rows.append(next(self.rounds))
            except StopIteration as end:
                self.path = end.value
        return self.path is None


def _fold_rounds(
    fold: FoldWork, trial: TrialWork, workers: Backend, library: Library, callback: RunCallback, tracker: Tracker
) -> Generator[RoundRow, None, Path]:
    """Yield the rounds of a fold, first those that an earlier run has; return the folder of the finished run."""
    if not trial.force and (store := fold.newest("finished")) is not None:
        yield from store.rounds()
        return store.path
    plan = planning.plan(fold.experiment, library)
    if (plan.digest, plan.content) != (fold.digest, fold.content):
        raise RunError(
            f"data {fold.experiment.data.name}: images, weights or code were replaced after the sweep began; "
            "run it again with --rerun failed"
        )
    earlier = None if trial.force else fold.newest("interrupted", "failed", "stopped")
    both = broadcast(callback, tracker.run(fold.experiment, TrialRef(trial.sweep, trial.id)))
    yield from earlier.rounds() if earlier else ()
    return (yield from runner.advance(plan, earlier, both, threading.Event(), workers))


def _rounds(work: TrialWork, folds: Sequence[_FoldRunner], callback: RunCallback) -> Iterator[Report]:
    """Run the folds to their ends."""

    def finish(fold: _FoldRunner) -> None:
        done = sum(one.path is not None for one in folds)
        callback.on_fold(work.label, done, len(folds), fold.rows[-1].metrics)

    if work.report_every is None:
        for number, fold in enumerate(folds, 1):
            while fold.advance():
                yield Report(fold.round, None, _note(fold, number, len(folds), work.metric))
            finish(fold)
        return
    until = 0
    while running := [fold for fold in folds if fold.path is None]:
        until += work.report_every
        for fold in running:
            last = until >= fold.work.experiment.federation.rounds
            while (last or fold.round < until) and fold.advance():
                pass
            if fold.path is not None:
                finish(fold)
        if all(fold.path is not None for fold in folds):
            return  # the final report follows; nothing is left for a scheduler to stop
        reached = min(until, max(fold.round for fold in folds))
        value = _mean([_last([row for row in fold.rows if row.round <= reached], work.metric) for fold in folds])
        yield Report(reached, value, f"round {reached}, {len(folds)} fold(s)")


def _note(fold: _FoldRunner, number: int, count: int, metric: str) -> str:
    value = fold.rows[-1].metrics.get(metric)
    shown = f", {metric} {value:.1f}" if value is not None else ""
    which = f"fold {number}/{count} " if count > 1 else ""
    return f"{which}round {fold.round}/{fold.work.experiment.federation.rounds}{shown}"


def _last(rows: Sequence[RoundRow], metric: str) -> float | None:
    return next((row.metrics[metric] for row in reversed(rows) if metric in row.metrics), None)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if there are no values, or some are missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def lock_folder(root: Path) -> Path:
    """The folder of the locks that keep two sweeps of a storage root from running the same fold."""
    return root / "locks"


def _acquire(stack: ExitStack, root: Path, digest: str) -> bool:
    """Lock a fold of this storage root until the stack closes; return whether it was free."""
    locks = lock_folder(root)
    make_folder(locks)
    with suppress(BlockingIOError):
        stack.enter_context(locked(locks / digest, wait=False))
        return True
    return False


def _is_disk_full(error: BaseException) -> bool:
    """Whether an exception, or one that caused it, reports a full disk."""
    found = _cause(error, OSError)
    return found is not None and is_full(found)


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """The exception of a kind among an exception and those that caused it."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error
