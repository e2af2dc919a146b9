"""Run a sweep from settings to ranked trials on Ray Tune, without relying on files that Tune keeps."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Literal

from fedpgp import config
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core import provenance
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import ConfigError, Interrupted, ResourceError, RunError, StorageError, UserError
from fedpgp.core.files import check_writable
from fedpgp.core.text import redacted
from fedpgp.experiments import features, launch, runner
from fedpgp.experiments.planning import Library, Plan
from fedpgp.experiments.sweeps import probes, sampling, search, trial_runner, tune_runner
from fedpgp.experiments.sweeps.preparation import Plans, Preparation
from fedpgp.experiments.sweeps.sampling import Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.sweeps.trial_runner import TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends import ray_cluster, versions
from fedpgp.federation.backends.actors import nodes
from fedpgp.federation.backends.base import OnDemand
from fedpgp.federation.backends.choice import cluster_address
from fedpgp.federation.cohorts import rounding
from fedpgp.federation.resources import capacity, shortfall
from fedpgp.storage.sweep_folder import SweepFolder, TrialSpec

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
    if sweep.tune.adaptive:
        probes.check_installed()
    drawn = sampling.draw(sweep)
    for note in filter(None, (drawn.dropped, drawn.unranked)):
        callback.on_message(note)
    _check_shared_settings(drawn.trials)
    prepared = Preparation(sweep, drawn.objectives, tracker, force=rerun == "all")
    launch.placed(tracker.settled(drawn.trials[0].experiment))
    trials = [prepared.settled(trial) for trial in drawn.trials]
    # Only a search plans more trials later; otherwise the model need not stay in memory.
    plans = _plans(prepared if sweep.tune.adaptive else replace(prepared, library=Library()), trials)
    first = [next(iter(own.values())) for own in plans.values()]
    shares = ((len(one.data.training_clients), one.experiment.federation) for one in first)
    for line in dict.fromkeys(rounding(*share) for share in shares):
        if line is not None:
            callback.on_message(line)
    specs = [TrialSpec(one.id, one.label, one.settings, tuple(plans[one.id])) for one in trials]
    storage, digest = trials[0].experiment.storage, sampling.digest(sweep, drawn.objectives, specs)
    root, uri = storage.root, storage.uri
    check_writable(trial_runner.lock_folder(root))
    exists = SweepFolder.exists(root, sweep.name, digest, uri)
    tracking = trials[0].experiment.tracking.model_dump()  # so that it is found again from another place
    content = redacted(config.dump(sweep.model_copy(update={"base": {**sweep.base, "tracking": tracking}})))
    adaptive, planned = sweep.tune.adaptive, sweep.tune.num_samples
    listed, number = ((), planned) if adaptive else (specs, None)
    folder = SweepFolder.create(root, sweep.name, digest, content, drawn.objectives, listed, number, uri)

    def known() -> list[TrialWork]:
        """The trials of the folder."""
        if adaptive:
            return list(search.recorded(prepared, folder))
        return [prepared.work(folder, trial, plans[trial.id]) for trial in trials]

    if exists and rerun is None:
        _refuse_unfinished(folder, known())
    waiting = folder.lock(callback.on_message)
    with waiting, launch.forward_warnings(callback), _tracked(folder, trials[0].experiment, tracker) as tracked:
        callback = broadcast(callback, tracked)
        if adaptive and rerun == "all":
            folder.restart_search(planned)
        todo = _select(folder, known(), rerun, callback)
        try:
            searching = adaptive and bool(todo or len(folder.trials) < folder.planned)
            needed = trials if searching else [trial for trial in trials if trial.id in {one.id for one in todo}]
            if needed:
                resources = [next(iter(plans[trial.id].values())).experiment.resources for trial in needed]
                largest = max(resources, key=ray_cluster.own_cpus)
                with ray_cluster.connected(largest):
                    versions.check(versions.alive(), own=cluster_address(largest) is not None)
                    concurrent = _concurrency(resources, sweep.tune.max_concurrent, callback)
                    # Of all trials: bits of a feature depend on the images encoded with it, also on another machine.
                    every = [plan for own in plans.values() for plan in own.values()]
                    _extract(trials[0].experiment.resources, every, concurrent, callback)
                    plans.clear()
                    rounds = max(trial.experiment.federation.rounds for trial in needed)
                    suggested = _search(prepared, folder, todo, callback) if searching else None
                    tune_runner.run(sweep.tune, folder, todo, suggested, rounds, callback)
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


def _plans(prepared: Preparation, trials: Sequence[Trial]) -> dict[str, Plans]:
    """Plan every fold of every trial; a `ConfigError` names all trials that cannot be run."""
    plans: dict[str, Plans] = {}
    wrong: dict[str, list[str]] = {}
    for trial in trials:
        try:
            plans[trial.id] = prepared.plans(trial)
        except UserError as error:
            for line in str(error).splitlines():
                wrong.setdefault(line, []).append(trial.label)
    if wrong:
        raise ConfigError("\n".join(sampling.format_error(line, labels, len(trials)) for line, labels in wrong.items()))
    return plans


def _search(
    prepared: Preparation, folder: SweepFolder, todo: Sequence[TrialWork], callback: RunCallback
) -> search.Search:
    """The search of an adaptive sweep, with the trials that were suggested before and have to run."""
    from fedpgp.experiments.sweeps.optuna_search import OptunaSampler

    history = [(one.variant, dict(one.point)) for one in folder.suggestions]
    sampler = OptunaSampler(prepared.sweep, prepared.objectives, history)
    return search.Search(prepared, folder, sampler, todo, callback)


def _check_shared_settings(trials: Sequence[Trial]) -> None:
    for key in ("storage.root", "storage.uri", "resources.address"):
        if len({attrgetter(key)(trial.experiment) for trial in trials}) > 1:
            raise ConfigError(f"{key}: must be the same for all trials; remove it from the search space")


def _refuse_unfinished(folder: SweepFolder, work: Sequence[TrialWork]) -> None:
    earlier, total = trial_runner.earlier(folder, work) if work else [], folder.planned
    ended = len(folder.trials) - sum(known is None for known, _ in earlier)
    if ended < total:
        outdated = sum(replaced for _, replaced in earlier)
        images = f"; the images of {outdated} have been replaced since" if outdated else ""
        raise RunError(
            f"{folder.path}: this sweep exists ({folder.state}, {ended} of {total} trials ended{images}); "
            "continue with --resume, or start over with --rerun all"
        )


def _select(
    folder: SweepFolder, work: Sequence[TrialWork], rerun: Rerun | None, callback: RunCallback
) -> list[TrialWork]:
    """Choose the trials to run now, and record those whose folds all finished in other sweeps."""
    counts = dict.fromkeys(("finished", "stopped", "failed"), 0)
    todo, outdated = [], 0
    for one, (known, replaced) in zip(work, trial_runner.earlier(folder, work), strict=True):
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


def _extract(given: ResourceSettings, plans: Sequence[Plan], concurrent: int, callback: RunCallback) -> None:
    """Extract the features of all trials, with as many actors as the trials will use together."""
    actors = concurrent * plans[0].experiment.resources.workers
    opened = partial(runner.make_backend, given.model_copy(update={"actors": actors}), threading.Event())
    with closing(OnDemand(opened)) as backend:
        features.extract_all(plans, backend, callback)
