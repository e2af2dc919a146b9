"""The folds of one trial, run a few rounds at a time, each once in the life of a store. Knows nothing of Tune."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.files import locked
from fedpgp.core.plugins import Code
from fedpgp.core.redaction import redacted
from fedpgp.experiments import planning, runner
from fedpgp.experiments.planning import Library
from fedpgp.experiments.runner import reason
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import Backend, Common, Job
from fedpgp.federation.records import RoundRow
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialRef

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class FoldWork:
    """A fold that is to be run."""

    fold: Fold
    experiment: Experiment
    digest: str
    """of its run"""

    def runs(self) -> list[RunFolder]:
        """All its runs, whatever their names, the newest first."""
        storage = self.experiment.storage
        return RunFolder.with_digest(storage.root, self.digest, storage.uri)

    def finished(self) -> RunFolder | None:
        """The newest that has finished."""
        return next((store for store in self.runs() if store.state == "finished"), None)

    def unfinished(self) -> RunFolder | None:
        """The newest that can go on, and that nobody is writing."""
        return next((store for store in self.runs() if store.state in ("interrupted", "failed", "stopped")), None)


@dataclass(frozen=True)
class TrialWork:
    """All that the process of a trial needs to know."""

    sweep: Path
    id: str
    label: str
    folds: tuple[FoldWork, ...]
    metric: str
    look_every: int | None
    """rounds between two looks of an early-stopping scheduler; None: nobody looks"""
    force: bool
    """run again even what has finished"""
    tracker: Tracker
    code: tuple[Code, ...] = ()
    """of plug-ins: unpickling it makes them importable there"""

    @property
    def resources(self) -> ResourceSettings:
        """What all its folds run on."""
        return self.folds[0].experiment.resources


@dataclass(frozen=True)
class Report:
    """How far a trial has come."""

    round: int
    """all folds have got so far; with nobody looking, the round of the fold that is running"""
    value: float | None
    """mean of the metric over folds at that round; None: not measured"""
    note: str = ""
    result: Result | None = None
    """once it has ended"""


def run(
    work: TrialWork,
    workers: Callable[[], Backend],
    library: Library,
    callback: RunCallback,
    tracker: Tracker,
) -> Generator[Report, None, None]:
    """Run the folds of a trial and record how it ended; a fold that has finished anywhere in the store is not run.

    Args:
        workers: called once there is something to run; they stay open.
        tracker: follows every fold that is run.

    With nobody looking the folds follow one another. For a scheduler they take turns of `look_every` rounds, so that
    each report is the mean over all folds at the same round. Closed before its end, its runs are `stopped`; what
    becomes of the trial then is for whoever closed it to say.
    """
    sweep = SweepFolder.open(work.sweep)
    try:
        with ExitStack() as stack:
            for digest in sorted(one.digest for one in work.folds):  # in one order, so that no two wait for each other
                while not _acquire(stack, sweep.root, digest):
                    yield Report(0, None, "waits for another sweep that runs it")
                    time.sleep(WAIT_SECONDS)
            turns = SharedWorkers(workers)
            folds = [_Fold(one, work, turns.seat(), library, callback, tracker) for one in work.folds]
            for fold in folds:
                stack.callback(fold.close)
            yield from _rounds(work, folds)
            runs = tuple(FoldRun(f.work.fold.seed, f.work.fold.held_out, f.path.name) for f in folds if f.path)
    except Exception as error:
        failed = Result(work.id, "failed", None, begun(work), reason(error))
        with suppress(OSError):  # the disk may be full; whoever follows the reports hears of it
            sweep.record(failed, redacted("".join(traceback.format_exception(error))))
        yield Report(0, None, result=failed)
    else:
        finished = Result(work.id, "finished", value_of(sweep.root, runs, work.metric), runs)
        sweep.record(finished)
        yield Report(folds[0].round, finished.value, result=finished)


def value_of(root: Path, runs: Sequence[FoldRun], metric: str) -> float | None:
    """Mean of a metric over finished runs, after the last round of each; None: one of them did not measure it."""
    values = [_last(RunFolder.open(root / "runs" / one.run).rounds(), metric) for one in runs]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def begun(work: TrialWork) -> tuple[FoldRun, ...]:
    """The newest run of every fold that has one, however it ended."""
    found = [(one.fold, one.runs()) for one in work.folds]
    return tuple(FoldRun(fold.seed, fold.held_out, stores[0].path.name) for fold, stores in found if stores)


class SharedWorkers:
    """Workers that several folds borrow in turn: what a fold needs is loaded when its turn comes."""

    def __init__(self, workers: Callable[[], Backend]) -> None:
        self._workers = workers
        self._held: Job | None = None

    def seat(self) -> Backend:
        """The workers, as one fold sees them."""
        return Lease(self)

    def holding(self, job: Job) -> Backend:
        """The workers with this job loaded."""
        workers = self._workers()
        if self._held is not job:
            workers.load(job)
            self._held = job
        return workers


class Lease:
    """One borrower of shared workers."""

    def __init__(self, turns: SharedWorkers) -> None:
        self._turns = turns
        self._job: Any = None

    def load(self, job: Job) -> None:
        """Kept, and loaded by the next `map` if the workers hold something else by then."""
        self._job = job

    def map(self, method: str, calls: Sequence[Any], common: Common | None = None) -> Iterator[Any]:
        """As the workers' own."""
        return self._turns.holding(self._job).map(method, calls, common)

    def close(self) -> None:
        """They belong to someone else."""


@dataclass
class _Fold:
    """A fold that is going on."""

    work: FoldWork
    trial: TrialWork
    workers: Backend
    library: Library
    callback: RunCallback
    tracker: Tracker
    round: int = 0
    path: Path | None = None
    """once it has finished"""
    rows: list[RoundRow] = field(default_factory=list)
    _going: Generator[RoundRow, None, Path] | None = None

    def advance(self) -> bool:
        """One round; whether there was one left."""
        if self.path is not None:
            return False
        if self._going is None:
            self._going = self._begin()
        try:
            row = next(self._going)
        except StopIteration as end:
            self.path = end.value
            return False
        self.rows.append(row)
        self.round = row.round
        return True

    def finish(self) -> None:
        """All its rounds, and its end."""
        while self.advance():
            pass

    def close(self) -> None:
        """Not wanted any further."""
        if self._going is not None:
            self._going.close()

    def _begin(self) -> Generator[RoundRow, None, Path]:
        if not self.trial.force and (store := self.work.finished()) is not None:
            yield from store.rounds()
            return store.path
        plan = planning.plan(self.work.experiment, self.library)
        earlier = None if self.trial.force else self.work.unfinished()
        tracked = self.tracker.run(self.work.experiment, TrialRef(self.trial.sweep, self.trial.id))
        self.rows.extend(earlier.rounds() if earlier else ())
        both = broadcast(self.callback, tracked)
        return (yield from runner.advance(plan, earlier, both, threading.Event(), self.workers))


def _rounds(work: TrialWork, folds: Sequence[_Fold]) -> Iterator[Report]:
    """Advance the folds to their ends."""
    if work.look_every is None:
        for number, fold in enumerate(folds, 1):
            while fold.advance():
                yield Report(fold.round, None, _note(fold, number, len(folds), work.metric))
        return
    until = 0
    while any(fold.path is None for fold in folds):
        until += work.look_every
        for fold in folds:
            if until >= fold.work.experiment.federation.rounds:
                fold.finish()
            while fold.round < until and fold.advance():
                pass
        if all(fold.path is not None for fold in folds):
            return  # the report of the end follows: a scheduler has nothing to stop any more
        reached = min(until, max(fold.round for fold in folds))
        values = [_last([row for row in fold.rows if row.round <= reached], work.metric) for fold in folds]
        known = [value for value in values if value is not None]
        value = fmean(known) if len(known) == len(folds) else None
        yield Report(reached, value, f"round {reached}, {len(folds)} fold(s)")


def _note(fold: _Fold, number: int, count: int, metric: str) -> str:
    value = fold.rows[-1].metrics.get(metric)
    shown = f", {metric} {value:.1f}" if value is not None else ""
    which = f"fold {number}/{count} " if count > 1 else ""
    return f"{which}round {fold.round}/{fold.work.experiment.federation.rounds}{shown}"


def _last(rows: Sequence[RoundRow], metric: str) -> float | None:
    return next((row.metrics[metric] for row in reversed(rows) if metric in row.metrics), None)


def _acquire(stack: ExitStack, root: Path, digest: str) -> bool:
    """Become the only trial that runs this fold on this store, until the stack ends; whether it was free."""
    locks = root / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(locked(locks / digest, wait=False))
    except BlockingIOError:
        return False
    return True
