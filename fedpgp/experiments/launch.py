"""Start runs, in this process or in a driver actor on Ray."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fedpgp import config
from fedpgp.config import Experiment, tracking_uri
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import Interrupted, ResourceError
from fedpgp.experiments import estimation, runner
from fedpgp.experiments.planning import Library, plan, settle
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends import check_variables
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.extraction import Forecast


def run(experiment: Experiment, resume: bool, callback: RunCallback, tracker: Tracker) -> Path:
    """Run an experiment on the backend of its settings, and return its folder. See `runner.run`."""
    experiment = tracker.settled(experiment)
    result: Path = _do(run_tracked, experiment, resume, tracker, callback=callback)
    return result


def extract(experiment: Experiment, callback: RunCallback) -> list[Path]:
    """Extract the features of an experiment without running it; return the cache files."""
    result: list[Path] = _do(_extract, experiment, callback=callback)
    return result


def forecast(experiment: Experiment, callback: RunCallback) -> list[Forecast]:
    """Estimate bytes and time of `extract`, by encoding a few images in this process."""
    with forward_warnings(callback):
        callback.on_prepare()
        ready = plan(config.absolute(experiment), Library(hashing=False))
        if ready.unhashed:
            callback.on_message("the images are not hashed here yet: features of equal images count as missing")
        return estimation.of_extraction(ready)


def detach(experiment: Experiment, resume: bool, tracker: Tracker) -> str:
    """Start an experiment and return its driver's name; raise `ResourceError` if Ray would end with this command."""
    check_variables()
    from fedpgp.federation.backends import driver, ray_cluster

    if experiment.resources.backend == "serial" or ray_cluster.cluster_address(experiment.resources) is None:
        raise ResourceError(
            "--detach needs a Ray that outlives this command: start one with `ray start --head` and give "
            "resources.address=auto (or set RAY_ADDRESS)"
        )
    settle(experiment)
    experiment = tracker.settled(experiment)
    with ray_cluster.connected(experiment.resources):
        name = _driver_name(experiment)
        driver.start(run_tracked, placed(experiment), resume, tracker, name=name, detached=True)
        return name


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
    """Call `runner.run` with a tracker, and forward warnings of the package to the callback."""
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
        callback.on_prepare()
        ready = plan(experiment)
        with closing(runner.make_backend(experiment.resources, stop)) as backend:
            return runner.extract_all([ready], backend, callback)


def _do(function: Callable[..., Any], experiment: Experiment, *args: Any, callback: RunCallback) -> Any:
    """Call a function that takes `callback` and `stop` on the backend of the settings."""
    with forward_warnings(callback):
        settle(experiment)  # before Ray starts; code that is loaded here is sent to the other processes
    if experiment.resources.backend == "serial":
        try:
            return function(config.absolute(experiment), *args, callback=callback, stop=threading.Event())
        except KeyboardInterrupt:
            raise Interrupted("stopped; continue with --resume") from None
    check_variables()
    from fedpgp.federation.backends import driver, ray_cluster

    with ray_cluster.connected(experiment.resources):
        return driver.drive(function, placed(experiment), *args, name=_driver_name(experiment), callback=callback)


def placed(experiment: Experiment) -> Experiment:
    """Make all paths absolute; raise `ResourceError` if a store is relative and no working folder is shared."""
    from fedpgp.federation.backends import ray_cluster

    root, uri = experiment.storage.root, tracking_uri.given_uri(experiment.tracking.uri)
    relative = {}
    if not root.expanduser().is_absolute():
        relative[f"storage.root: {root}"] = "an absolute folder that every node can access, or s3://BUCKET/FOLDER"
    if experiment.tracking.mlflow and uri is not None and tracking_uri.is_relative(uri):
        relative[f"tracking.uri: {uri}"] = "an absolute path that every node can access, or http://HOST:PORT"
    if relative and not ray_cluster.one_folder(experiment.resources):
        setting, instead = next(iter(relative.items()))
        raise ResourceError(
            f"{setting} is relative, but the nodes of a cluster and submitted jobs do not share a working directory; "
            f"give {instead}"
        )
    return config.absolute(experiment)


def _driver_name(experiment: Experiment) -> str:
    return f"{experiment.name}-{uuid.uuid4().hex[:6]}"


@contextmanager
def forward_warnings(callback: RunCallback) -> Iterator[None]:
    """Forward warnings of the package to a callback, so that they reach the user from any process."""

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
