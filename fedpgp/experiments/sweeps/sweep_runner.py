"""Run a sweep from settings to ranked trials on Ray Tune, without relying on files that Tune keeps."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from operator import attrgetter
from typing import Literal

from fedpgp import config
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core import provenance
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import ConfigError, Interrupted, ResourceError, RunError, StorageError, UserError
from fedpgp.core.files import check_writable
from fedpgp.core.plugins import to_send
from fedpgp.core.text import redacted
from fedpgp.data.protocol import held_out_names
from fedpgp.experiments import launch, planning, runner
from fedpgp.experiments.planning import Library, Plan
from fedpgp.experiments.sweeps import sampling, trial_runner, tune_runner
from fedpgp.experiments.sweeps.sampling import Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.sweeps.trial_runner import FoldWork, TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends import ray_cluster
from fedpgp.federation.backends.actors import nodes
from fedpgp.federation.resources import capacity, shortfall
from fedpgp.federation.server import rounding
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec

Rerun = Literal["missing", "failed", "all"]


def run(sweep: Sweep, rerun: Rerun | None, callback: RunCallback, tracker: Tracker) -> SweepFolder:
    """Run a sweep and return its folder. Trials that finished in this or another sweep of the store are not repeated.

    Args:
        rerun: what to run if the sweep exists. None: nothing; an unfinished sweep is refused. `missing`: trials that
            have not ended: not started, killed, stopped by a signal, or failed on a full disk. `failed`: those and
            failed ones. `all`: every trial, from its first round.

    Raises:
        UserError: a trial cannot be run, or the sweep exists and is unfinished; nothing was started.
        Interrupted: stopped by a signal; finished trials and committed rounds are kept.
    """
    callback.on_prepare()
    drawn = sampling.draw(sweep)
    if drawn.dropped:
        callback.on_message(drawn.dropped)
    _check_shared_settings(drawn.trials)
    trials = [replace(trial, experiment=tracker.settled(trial.experiment)) for trial in drawn.trials]
    launch.placed(trials[0].experiment)
    trials = [replace(trial, experiment=config.absolute(trial.experiment)) for trial in trials]
    plans = _plans(sweep, trials)
    first = [next(iter(own.values())) for own in plans.values()]
    shares = ((len(one.data.training_clients), one.experiment.federation) for one in first)
    for line in dict.fromkeys(rounding(*share) for share in shares):
        if line is not None:
            callback.on_message(line)
    specs = [TrialSpec(one.id, one.label, one.settings, tuple(plans[one.id])) for one in trials]
    storage, digest = trials[0].experiment.storage, sampling.digest(sweep.tune, drawn.metric, specs)
    root, uri = storage.root, storage.uri
    check_writable(trial_runner.lock_folder(root))
    exists = SweepFolder.exists(root, sweep.name, digest, uri)
    tracking = trials[0].experiment.tracking.model_dump()  # so that it is found again from another place
    content = redacted(config.dump(sweep.model_copy(update={"base": {**sweep.base, "tracking": tracking}})))
    folder = SweepFolder.create(root, sweep.name, digest, content, drawn.metric, sweep.tune.mode, specs, uri)
    work = [
        TrialWork(
            sweep=folder.path,
            id=trial.id,
            label=trial.label,
            folds=tuple(
                FoldWork(fold, plan.experiment, plan.digest, plan.content) for fold, plan in plans[trial.id].items()
            ),
            metric=drawn.metric,
            report_every=None if sweep.tune.scheduler == "fifo" else sweep.tune.grace_rounds,
            force=rerun == "all",
            tracker=tracker,
            code=to_send(),
        )
        for trial in trials
    ]
    if exists and rerun is None:
        _refuse_unfinished(folder, work)
    waiting = folder.lock(callback.on_message)
    with waiting, launch.forward_warnings(callback), _tracked(folder, trials[0].experiment, tracker) as tracked:
        callback = broadcast(callback, tracked)
        todo = _select(folder, work, rerun, callback)
        try:
            if todo:
                with ray_cluster.connected(max((one.resources for one in todo), key=ray_cluster.own_cpus)):
                    concurrent = _concurrency([one.resources for one in todo], sweep.tune.max_concurrent, callback)
                    # Of all trials: bits of a feature depend on the images encoded with it, also on another machine.
                    _extract([plan for own in plans.values() for plan in own.values()], concurrent, callback)
                    plans.clear()
                    tune_runner.run(sweep.tune, folder, todo, len(trials), callback)
        except BaseException as error:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            with suppress(OSError, StorageError):  # then the status stays `running`, which counts as interrupted
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


def _plans(sweep: Sweep, trials: Sequence[Trial]) -> dict[str, dict[Fold, Plan]]:
    """Plan every fold of every trial; a `ConfigError` names all trials that cannot be run."""
    library = Library()
    plans: dict[str, dict[Fold, Plan]] = {}
    wrong: dict[str, list[str]] = {}
    for trial in trials:
        try:
            own = sampling.folds(sweep, trial, held_out_names(library.manifest(trial.experiment.data)))
            plans[trial.id] = {fold: planning.plan(trial.fold(fold), library).without_text() for fold in own}
        except UserError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(trial.label)
    if wrong:
        raise ConfigError("\n".join(sampling.format_error(line, labels, len(trials)) for line, labels in wrong.items()))
    return plans


def _check_shared_settings(trials: Sequence[Trial]) -> None:
    for key in ("storage.root", "storage.uri", "resources.address"):
        if len({attrgetter(key)(trial.experiment) for trial in trials}) > 1:
            raise ConfigError(f"{key}: must be the same for all trials; remove it from the search space")


def _refuse_unfinished(folder: SweepFolder, work: Sequence[TrialWork]) -> None:
    earlier = _earlier(folder, work)
    ended = sum(known is not None for known, _ in earlier)
    if ended < len(work):
        outdated = sum(replaced for _, replaced in earlier)
        images = f"; the images of {outdated} have been replaced since" if outdated else ""
        raise RunError(
            f"{folder.path}: this sweep exists ({folder.state}, {ended} of {len(work)} trials ended{images}); "
            "continue with --resume, or start over with --rerun all"
        )


def _select(
    folder: SweepFolder, work: Sequence[TrialWork], rerun: Rerun | None, callback: RunCallback
) -> list[TrialWork]:
    """Choose the trials to run now, and record those whose folds all finished in other sweeps."""
    counts = dict.fromkeys(("finished", "stopped", "failed"), 0)
    todo, outdated = [], 0
    for one, (known, replaced) in zip(work, _earlier(folder, work), strict=True):
        if one.force or known is None or (known.state == "failed" and rerun == "failed"):
            outdated += replaced
            folder.forget(one.id)
            todo.append(one)
        else:
            counts[known.state] += 1
            if folder.result(one.id) != known:
                folder.record(known)
    for state, count in counts.items():
        if count:
            hint = "; run them again with --rerun failed" if state == "failed" else ""
            callback.on_message(f"{count} of {len(work)} trials {state} before{hint}")
    today = [provenance.describe()] if todo else []
    if changed := provenance.differing([*folder.made_with(), *today]):
        callback.on_message(
            f"the trials are ranked although they are made with different {provenance.as_text(changed)}; "
            "--rerun all runs every trial anew",
            warning=True,
        )
    if outdated:
        callback.on_message(f"{outdated} of {len(work)} trials run anew: their images have been replaced since")
    return todo


def _earlier(folder: SweepFolder, work: Sequence[TrialWork]) -> list[tuple[Result | None, bool]]:
    """What earlier runs give each trial: its result, and whether its images have been replaced since it had one.

    There is a result if the trial ended in this sweep, or its folds all finished in other sweeps.
    """
    stored = trial_runner.stored_runs([fold for one in work for fold in one.folds])
    found: list[tuple[Result | None, bool]] = []
    for one in work:
        result = folder.result(one.id)
        held = {store.path.name: store.has_images(fold.content) for fold in one.folds for store in stored[fold.digest]}
        replaced = result is not None and any(not held.get(fold.run, True) for fold in result.folds)
        runs = [(each.fold, each.newest("finished", stored=stored)) for each in one.folds]
        own = tuple(FoldRun(fold.seed, fold.held_out, run.path.name) for fold, run in runs if run)
        if len(own) == len(runs):
            result = Result(one.id, "finished", trial_runner.value_of(folder.root, own, one.metric), own)
        elif result is not None and (result.state == "finished" or result.disk_full or replaced):
            result = None  # finished: its runs were removed, or its data changed
        found.append((result, replaced))
    return found


def _concurrency(wanted: Sequence[ResourceSettings], max_concurrent: int, callback: RunCallback) -> int:
    """How many trials the cluster can run at a time; raise `ResourceError` if one does not fit."""
    available = nodes()
    least = max_concurrent
    for resources in dict.fromkeys(wanted):
        size = resources.cpus_per_actor, resources.gpus_per_actor
        if short := shortfall(resources.workers, *size, available):
            raise ResourceError(f"a trial does not fit: {short}")
        least = min(least, sum(capacity(node, *size) for node in available) // resources.workers)
    if least < min(max_concurrent, len(wanted)):
        callback.on_message(f"the cluster has room for {least} trial(s) at a time, not {max_concurrent}")
    return least


def _extract(plans: Sequence[Plan], concurrent: int, callback: RunCallback) -> None:
    """Extract the features of all trials, with as many actors as the trials will use together."""
    if runner.all_extracted(plans):
        return
    each = plans[0].experiment.resources
    resources = each.model_copy(update={"actors": concurrent * each.actors})
    with closing(runner.make_backend(resources, threading.Event())) as backend:
        runner.extract_all(plans, backend, callback)
