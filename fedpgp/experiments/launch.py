"""Start, follow and stop work, in this process or in a driver actor on Ray."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpgp import config
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import Event, RunCallback, broadcast
from fedpgp.core.errors import Interrupted, ResourceError
from fedpgp.experiments import estimation, runner
from fedpgp.experiments.planning import plan, settle
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.extraction import Forecast


def run(experiment: Experiment, resume: bool, callback: RunCallback, tracker: Tracker) -> Path:
    """Run an experiment where its settings say, wait for it, and return its folder. See `runner.run`."""
    result: Path = _do(run_tracked, experiment, resume, tracker, callback=callback)
    return result


def extract(experiment: Experiment, callback: RunCallback) -> list[Path]:
    """Extract the features that an experiment needs, and nothing more; their files."""
    result: list[Path] = _do(_extract, experiment, callback=callback)
    return result


def forecast(experiment: Experiment, callback: RunCallback) -> list[Forecast]:
    """What `extract` would take, in bytes and time; a few images are encoded here to know it, and nothing is kept."""
    with forward_warnings(callback):
        callback.on_prepare()
        return estimation.forecast(plan(config.absolute(experiment)))


def detach(experiment: Experiment, resume: bool, tracker: Tracker) -> str:
    """Start an experiment on a cluster that outlives this command, and leave it there; the name of its driver.

    Raises:
        ResourceError: the cluster would end with this command.
    """
    from fedpgp.federation.backends import driver

    if experiment.resources.backend == "serial" or driver.lasting_address(experiment.resources) is None:
        raise ResourceError(
            "--detach needs a Ray that outlives this command: start one with `ray start --head` and give "
            "resources.address=auto (or set RAY_ADDRESS)"
        )
    settle(experiment)
    with driver.connected(experiment.resources):
        name = _driver_name(experiment)
        driver.start(run_tracked, placed(experiment), resume, tracker, name=name, detached=True)
        return name


def attach(name: str, resources: ResourceSettings, callback: RunCallback) -> Path:
    """Follow a driver until its run ends, and leave it alone on Ctrl-C; the run's folder."""
    from fedpgp.federation.backends import driver

    with driver.connected(resources):
        result: Path = driver.follow(driver.find(name), callback)
        return result


def stop(name: str, resources: ResourceSettings) -> None:
    """Ask a driver to abandon its round and end; what was committed stays, `--resume` goes on."""
    from fedpgp.federation.backends import driver

    with driver.connected(resources):
        driver.stop(name)


def drivers(resources: ResourceSettings) -> dict[str, Event | None]:
    """The drivers on a cluster, and the last event of each."""
    from fedpgp.federation.backends import driver

    with driver.connected(resources):
        return driver.last_events()


def run_tracked(
    experiment: Experiment,
    resume: bool,
    tracker: Tracker,
    *,
    restarted: bool = False,
    callback: RunCallback,
    stop: threading.Event,
    backend: Backend | None = None,
) -> Path:
    """`runner.run` in this process, followed by a tracker; warnings of the package go to the callback.

    A driver whose process died is started again with `restarted`, and then continues from its checkpoint.
    """
    with forward_warnings(callback):
        try:
            both = broadcast(callback, tracker.run(experiment))
            return runner.run(experiment, resume, both, stop, backend, restarted=restarted)
        finally:
            tracker.close()


def _extract(
    experiment: Experiment, *, restarted: bool = False, callback: RunCallback, stop: threading.Event
) -> list[Path]:
    with forward_warnings(callback):
        return runner.extract_only(experiment, callback, stop)


def _do(function: Callable[..., Any], experiment: Experiment, *args: Any, callback: RunCallback) -> Any:
    """Run a function that takes `callback` and `stop` where the settings say."""
    with forward_warnings(callback):
        settle(experiment)  # before Ray starts; and what is loaded here is sent to the other processes
    if experiment.resources.backend == "serial":
        try:
            return function(config.absolute(experiment), *args, callback=callback, stop=threading.Event())
        except KeyboardInterrupt:
            raise Interrupted("stopped; nothing is lost, go on with --resume") from None
    from fedpgp.federation.backends import driver

    with driver.connected(experiment.resources):
        return driver.drive(function, placed(experiment), *args, name=_driver_name(experiment), callback=callback)


def placed(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths.

    Raises:
        ResourceError: storage.root is relative, and the folder that it starts from is not the same everywhere.
    """
    from fedpgp.federation.backends import driver

    root = experiment.storage.root
    if not root.expanduser().is_absolute() and not driver.one_folder(experiment.resources):
        raise ResourceError(
            f"storage.root: {root} is relative, but a cluster of several nodes and a submitted job have no folder in "
            "common that lasts; give an absolute folder that every node sees, or a URI such as s3://BUCKET/FOLDER"
        )
    return config.absolute(experiment)


def _driver_name(experiment: Experiment) -> str:
    return f"{experiment.name}-{uuid.uuid4().hex[:6]}"


@contextmanager
def forward_warnings(callback: RunCallback) -> Iterator[None]:
    """Pass warnings of the package to a callback, so that they reach the user from any process."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            callback.on_message(record.getMessage(), warning=record.levelno >= logging.WARNING)

    logger, handler = logging.getLogger("fedpgp"), Handler(logging.INFO)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
