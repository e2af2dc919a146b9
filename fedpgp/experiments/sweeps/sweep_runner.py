"""A sweep from settings to ranked trials, on Ray Tune. Nothing of it depends on what Tune itself keeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

from fedpgp import config, tracking
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.errors import ConfigError, Interrupted, ResourceError, UserError
from fedpgp.core.redaction import redacted
from fedpgp.experiments import launch, planning
from fedpgp.experiments import runner as experiments
from fedpgp.experiments.planning import Library, Plan
from fedpgp.experiments.runner import Emit
from fedpgp.experiments.sweeps import sampling, sweep_settings, trial_runner, tune_runner
from fedpgp.experiments.sweeps.sampling import SampledTrials, Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.sweeps.trial_runner import FoldWork, TrialWork
from fedpgp.federation.backends import driver
from fedpgp.federation.backends.actors import nodes
from fedpgp.federation.backends.packing import capacity, shortfall
from fedpgp.federation.records import Progress
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec

Rerun = Literal["failed", "all"]


def run(sweep: Sweep, rerun: Rerun | None, emit: Emit) -> SweepFolder:
    """Draw the trials of a sweep, and run those that have not ended yet; its folder.

    Args:
        rerun: failed: those that failed, too; all: every trial, from the start.

    Raises:
        UserError: a trial cannot be run (all of them named), or the store would be lost; nothing was begun.
        Interrupted: stopped by a signal; what has finished is kept.
    """
    emit(Progress("prepare", note="reading data and backbone"))
    drawn = sampling.draw(sweep)
    _refuse_scattered(drawn.trials)
    launch.placed(drawn.trials[0].experiment)
    trials = [replace(trial, experiment=config.absolute(trial.experiment)) for trial in drawn.trials]
    plans = _plans(sweep, trials)
    folder = _create(sweep, drawn, trials, plans)
    waiting = folder.lock(lambda note: emit(Progress("note", note=note)))
    with waiting, _mirrored(folder, trials[0].experiment, emit) as tell:
        todo = _left(folder, sweep, drawn.metric, trials, plans, rerun, tell)
        try:
            if todo:
                with driver.connected(max((work.resources for work in todo), key=_cpus)):
                    at_once = _room([work.resources for work in todo], sweep.tune.max_concurrent, tell)
                    _extract([plan for work in todo for plan in plans[work.id]], at_once, tell)
                    plans.clear()
                    tune_runner.run(sweep.tune, folder, todo, len(trials), tell)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            with suppress(OSError):  # the disk may be full; it counts as interrupted then
                folder.set_status("stopped" if stopped else "failed", experiments.reason(error))
            raise
        failed = sum(result.state == "failed" for result in folder.results().values())
        folder.set_status("failed" if failed else "finished", f"{failed} trial(s) failed" if failed else None)
    return folder


@contextmanager
def _mirrored(folder: SweepFolder, experiment: Experiment, emit: Emit) -> Iterator[Emit]:
    """MLflow's entries of the sweep and its trials follow their results; folds are mirrored where they run."""
    if not experiment.tracking.mlflow:
        yield emit
        return
    uri = experiment.tracking.uri or tracking.default_uri(experiment.storage.root)
    with launch.warnings_told(emit):
        mirror = tracking.Mirror(folder.path, uri)
        ended = -1

        def tell(progress: Progress) -> None:
            nonlocal ended
            emit(progress)
            if progress.stage == "trials" and progress.done != ended:
                ended = progress.done
                mirror.notify()

        try:
            yield tell
        finally:
            mirror.close()


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
    emit: Emit,
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
            emit(Progress("note", note=f"{count} of {len(trials)} trials {state} before{hint}"))
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


def _room(wanted: Sequence[ResourceSettings], max_concurrent: int, emit: Emit) -> int:
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
        emit(Progress("note", note=f"the cluster has room for {least} trial(s) at a time, not {max_concurrent}"))
    return least


def _extract(plans: Sequence[Plan], at_once: int, emit: Emit) -> None:
    """What all trials need is there before the first of them starts, by as many actors as they will have together."""
    if experiments.all_extracted(plans):
        return
    each = plans[0].experiment.resources
    backend = experiments.make_backend(each.model_copy(update={"actors": at_once * each.actors}), threading.Event())
    try:
        experiments.extract_all(plans, backend, emit)
    finally:
        backend.close()
