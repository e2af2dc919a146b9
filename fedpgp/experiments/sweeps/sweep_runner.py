"""A sweep from settings to ranked trials, on Ray Tune. Nothing of it depends on what Tune itself keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

from fedpgp import config
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import ConfigError, Interrupted, ResourceError, UserError
from fedpgp.core.redaction import redacted
from fedpgp.experiments import launch, planning, runner
from fedpgp.experiments.planning import Library, Plan
from fedpgp.experiments.sweeps import sampling, sweep_settings, trial_runner, tune_runner
from fedpgp.experiments.sweeps.sampling import SampledTrials, Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.sweeps.trial_runner import FoldWork, TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends import driver
from fedpgp.federation.backends.actors import nodes
from fedpgp.federation.backends.packing import capacity, shortfall
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec

Rerun = Literal["failed", "all"]


def run(sweep: Sweep, rerun: Rerun | None, callback: RunCallback, tracker: Tracker) -> SweepFolder:
    """Draw the trials of a sweep, and run those that have not ended yet; its folder.

    Args:
        rerun: failed: those that failed, too; all: every trial, from the start.

    Raises:
        UserError: a trial cannot be run (all of them named), or the store would be lost; nothing was begun.
        Interrupted: stopped by a signal; what has finished is kept.
    """
    callback.on_prepare()
    drawn = sampling.draw(sweep)
    _refuse_scattered(drawn.trials)
    launch.placed(drawn.trials[0].experiment)
    trials = [replace(trial, experiment=config.absolute(trial.experiment)) for trial in drawn.trials]
    plans = _plans(sweep, trials)
    folder = _create(sweep, drawn, trials, plans)
    waiting = folder.lock(callback.on_message)
    with waiting, launch.forward_warnings(callback), _tracked(folder, trials[0].experiment, tracker) as tracked:
        callback = broadcast(callback, tracked)
        todo = _left(folder, sweep, drawn.metric, trials, plans, rerun, tracker, callback)
        try:
            if todo:
                with driver.connected(max((work.resources for work in todo), key=_cpus)):
                    at_once = _room([work.resources for work in todo], sweep.tune.max_concurrent, callback)
                    _extract([plan for work in todo for plan in plans[work.id]], at_once, callback)
                    plans.clear()
                    tune_runner.run(sweep.tune, folder, todo, len(trials), callback)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            with suppress(OSError):  # the disk may be full; it counts as interrupted then
                folder.set_status("stopped" if stopped else "failed", runner.reason(error))
            raise
        failed = sum(result.state == "failed" for result in folder.results().values())
        folder.set_status("failed" if failed else "finished", f"{failed} trial(s) failed" if failed else None)
    return folder


@contextmanager
def _tracked(folder: SweepFolder, experiment: Experiment, tracker: Tracker) -> Iterator[RunCallback]:
    """The tracker's callback for the sweep, closed at the end."""
    tracked = tracker.sweep(folder.path, experiment)
    try:
        yield tracked
    finally:
        tracked.on_end(str(folder.path), folder.state)
        tracker.close()


def _plans(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, list[Plan]]:
    """Every fold of every trial, checked as far as it goes without reading an image.

    Raises:
        ConfigError: trials that cannot be run, all named at once.
    """
    library = Library()
    plans: dict[str, list[Plan]] = {}
    wrong: dict[str, list[str]] = {}
    for trial in trials:
        try:
            own = sampling.folds(sweep, trial, library.manifest(trial.experiment.data).domains)
            plans[trial.id] = [planning.plan(trial.fold(fold), library).without_text() for fold in own]
        except UserError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(trial.label)
    if wrong:
        raise ConfigError("\n".join(sampling.format_error(line, labels, len(trials)) for line, labels in wrong.items()))
    return plans


def _refuse_scattered(trials: Sequence[Trial]) -> None:
    """A sweep has one store and one cluster."""
    shared: dict[str, set[Any]] = {
        "storage.root": {trial.experiment.storage.root for trial in trials},
        "resources.address": {trial.experiment.resources.address for trial in trials},
    }
    for key, values in shared.items():
        if len(values) > 1:
            raise ConfigError(f"{key}: all trials of a sweep share one; take it out of the space")


def _create(
    sweep: Sweep, drawn: SampledTrials, trials: Sequence[Trial], plans: Mapping[str, Sequence[Plan]]
) -> SweepFolder:
    planned = [
        TrialSpec(trial.id, trial.label, trial.settings, tuple(_fold(plan) for plan in plans[trial.id]))
        for trial in trials
    ]
    root, digest = trials[0].experiment.storage.root, sampling.digest(sweep.tune, drawn.metric, planned)
    return SweepFolder.create(
        root, sweep.name, digest, redacted(sweep_settings.dump(sweep)), drawn.metric, sweep.tune.mode, planned
    )


def _fold(plan: Plan) -> Fold:
    return Fold(plan.experiment.seed, plan.experiment.protocol.held_out)


def _left(
    folder: SweepFolder,
    sweep: Sweep,
    metric: str,
    trials: Sequence[Trial],
    plans: Mapping[str, Sequence[Plan]],
    rerun: Rerun | None,
    tracker: Tracker,
    callback: RunCallback,
) -> list[TrialWork]:
    """The trials that are to be run now. Those whose folds have all finished, in whatever sweep, are recorded."""
    look = None if sweep.tune.scheduler == "fifo" else sweep.tune.grace_rounds
    counts = dict.fromkeys(("finished", "stopped", "failed"), 0)
    todo = []
    for trial in trials:
        work = TrialWork(
            sweep=folder.path,
            id=trial.id,
            label=trial.label,
            folds=tuple(FoldWork(_fold(plan), plan.experiment, plan.digest) for plan in plans[trial.id]),
            metric=metric,
            look_every=look,
            force=rerun == "all",
            tracker=tracker,
        )
        known = None if work.force else _known(folder, work)
        if known is None or (known.state == "failed" and rerun is not None):
            folder.forget(trial.id)
            todo.append(work)
        else:
            counts[known.state] += 1
    for state, count in counts.items():
        if count:
            hint = "; --resume runs them again" if state == "failed" else ""
            callback.on_message(f"{count} of {len(trials)} trials {state} before{hint}")
    return todo


def _known(folder: SweepFolder, work: TrialWork) -> Result | None:
    """How a trial ended before: in this sweep, or fold by fold in others."""
    runs = {one.digest: one.finished() for one in work.folds}
    if all(run is not None for run in runs.values()):
        own = tuple(
            FoldRun(one.fold.seed, one.fold.held_out, run.path.name) for one in work.folds if (run := runs[one.digest])
        )
        result = Result(work.id, "finished", trial_runner.value_of(folder.root, own, work.metric), own)
        if folder.result(work.id) != result:
            folder.record(result)
        return result
    known = folder.result(work.id)
    return None if known is None or known.state == "finished" else known  # its runs were removed, or its data changed


def _cpus(resources: ResourceSettings) -> float:
    return resources.actors * resources.cpus_per_actor


def _room(wanted: Sequence[ResourceSettings], max_concurrent: int, callback: RunCallback) -> int:
    """Compare what trials need with what the cluster has; how many can run at a time.

    Raises:
        ResourceError: a trial would wait forever.
    """
    there = nodes()
    least = max_concurrent
    for resources in dict.fromkeys(wanted):
        actors = 1 if resources.backend == "serial" else resources.actors
        size = resources.cpus_per_actor, resources.gpus_per_actor
        if short := shortfall(actors, *size, there):
            raise ResourceError(f"a trial does not fit: {short}")
        least = min(least, sum(capacity(node, *size) for node in there) // actors)
    if least < min(max_concurrent, len(wanted)):
        callback.on_message(f"the cluster has room for {least} trial(s) at a time, not {max_concurrent}")
    return least


def _extract(plans: Sequence[Plan], at_once: int, callback: RunCallback) -> None:
    """What all trials need is there before the first of them starts, by as many actors as they will have together."""
    if runner.all_extracted(plans):
        return
    each = plans[0].experiment.resources
    backend = runner.make_backend(each.model_copy(update={"actors": at_once * each.actors}), threading.Event())
    try:
        runner.extract_all(plans, backend, callback)
    finally:
        backend.close()
