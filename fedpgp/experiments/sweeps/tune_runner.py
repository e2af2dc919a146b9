"""The trials of a sweep handed to Ray Tune: its schedulers, and nothing said or kept of its own."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune

from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import FedPGPError, Interrupted
from fedpgp.core.files import TEMPORARY
from fedpgp.experiments.sweeps.sweep_settings import TuneSettings
from fedpgp.experiments.sweeps.trainable import SweepTrial
from fedpgp.experiments.sweeps.trial_runner import TrialWork
from fedpgp.experiments.sweeps.tune_callback import ProgressCallback
from fedpgp.storage.sweep_folder import SweepFolder

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
}
"""Tune shows nothing and keeps nothing of its own, and stages no more trials than can start."""
REDUCTION = 3
"""asha: of so many trials one goes on to the next look."""


def run(
    settings: TuneSettings, folder: SweepFolder, todo: Sequence[TrialWork], total: int, callback: RunCallback
) -> None:
    """Hand the trials to Tune, and see to it that each of them has a result.

    Raises:
        Interrupted: trials are left, because of a signal.
        FedPGPError: trials are left, because the disk is full.
    """
    work = {one.id: one for one in todo}
    rounds = max(fold.experiment.federation.rounds for one in todo for fold in one.folds)
    telling = ProgressCallback(folder, work, settings.scheduler, total, callback)
    with _quiet(), _scratch(folder) as scratch:
        tune.Tuner(
            # Work goes by way of each trial's config: what `with_parameters` puts into the object store stays there.
            tune.with_resources(SweepTrial, lambda config: _bundles(config["trial"])),
            param_space={"trial": tune.grid_search(list(todo))},
            tune_config=tune.TuneConfig(
                scheduler=_scheduler(settings, rounds),
                max_concurrent_trials=settings.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[telling],
                stop=telling.stopper,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    telling.close()
    left = [one for one in todo if folder.result(one.id) is None]
    if left:
        rest = f"{len(left)} of {total} trials are left; go on with --resume"
        if telling.stopper.why is not None:
            raise FedPGPError(f"{telling.stopper.why}; {rest}")
        raise Interrupted(f"stopped; {rest}")


def _bundles(work: TrialWork) -> tune.PlacementGroupFactory:
    """One bundle for each client actor, and none for the trial itself, which computes nothing unless it is serial."""
    resources = work.resources
    each = {"CPU": resources.cpus_per_actor, "GPU": resources.gpus_per_actor}
    if resources.backend == "serial":
        return tune.PlacementGroupFactory([each])
    return tune.PlacementGroupFactory([{}, *[each] * resources.actors])


def _scheduler(settings: TuneSettings, rounds: int) -> Any:
    """Tune's own, looking at the mean over folds by round."""
    judged = {"time_attr": "rounds", "metric": "value", "mode": settings.mode}
    if settings.scheduler == "asha":
        return tune.schedulers.ASHAScheduler(
            **judged, max_t=rounds + 1, grace_period=min(settings.grace_rounds, rounds), reduction_factor=REDUCTION
        )
    if settings.scheduler == "median":
        return tune.schedulers.MedianStoppingRule(**judged, grace_period=settings.grace_rounds)
    return tune.schedulers.FIFOScheduler()


@contextmanager
def _quiet() -> Iterator[None]:
    """Tune says and keeps nothing of its own; SIGTERM ends it as Ctrl-C does: trials are stopped, then it returns."""
    before = {key: os.environ.get(key) for key in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    here = threading.current_thread() is threading.main_thread()
    if here:
        on_sigterm = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, on_sigterm)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def _scratch(folder: SweepFolder) -> Iterator[Path]:
    """A folder for Tune, where every node can see it, and gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.path))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
