"""Start runs, in this process or in a driver actor on Ray."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from fedpgp import config
from fedpgp.config import Experiment, ResourceSettings, tracking_uri
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import Interrupted, ResourceError
from fedpgp.experiments import estimation, features, placement, runner
from fedpgp.experiments.planning import Library, plan, settle
from fedpgp.experiments.runner import OpenWorkers, make_backend
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends import check_variables
from fedpgp.federation.backends.base import Backend, OnDemand
from fedpgp.federation.backends.choice import cluster_address, on_cluster
from fedpgp.federation.extraction import Forecast


def run(experiment: Experiment, resume: bool, callback: RunCallback, tracker: Tracker) -> Path:
    """Run an experiment on the backend of its settings, and return its folder. See `runner.run`."""
    experiment = tracker.settled(experiment)
    result: Path = _do(
        run_tracked, experiment, resume, tracker, callback=callback, meanwhile=partial(tracker.load, experiment)
    )
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
    from fedpgp.federation.backends import driver, ray_cluster, versions

    if experiment.resources.backend == "serial" or cluster_address(experiment.resources) is None:
        raise ResourceError(
            "--detach needs a Ray that outlives this command: start one with `ray start --head` and give "
            "resources.address=auto (or set RAY_ADDRESS)"
        )
    settle(experiment)
    experiment = tracker.settled(experiment)
    with ray_cluster.connected(experiment.resources):
        versions.check(versions.alive())
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
    open_workers: OpenWorkers = make_backend,
) -> Path:
    """Call `runner.run` with a tracker, and forward warnings of the package to the callback."""
    with forward_warnings(callback):
        try:
            both = broadcast(callback, tracker.run(experiment))
            return runner.run(experiment, resume, both, stop, backend, restarted=restarted, open_workers=open_workers)
        finally:
            tracker.close()


def _extract(
    experiment: Experiment,
    *,
    restarted: bool = False,
    callback: RunCallback,
    stop: threading.Event,
    open_workers: OpenWorkers = make_backend,
) -> list[Path]:
    with forward_warnings(callback):
        callback.on_prepare()
        ready = placement.of_extraction(plan(experiment), callback)
        with closing(OnDemand(partial(open_workers, ready.experiment.resources, stop))) as workers:
            return features.extract_all([ready], workers, callback)


def _do(
    function: Callable[..., Any],
    experiment: Experiment,
    *args: Any,
    callback: RunCallback,
    meanwhile: Callable[[], None] | None = None,
) -> Any:
    """Call a function that takes `callback`, `stop` and `open_workers`: in a driver on a cluster, else in this process.

    Args:
        meanwhile: a local Ray starts while the function plans, if the settings tell that it is needed, and this is
            called in a thread; None: it starts when the function opens workers.
    """
    resources = experiment.resources
    with forward_warnings(callback):
        _, method = settle(experiment)  # before Ray starts; code that is loaded here is sent to the other processes
    if resources.backend != "serial" and on_cluster(resources):
        check_variables()
        from fedpgp.federation.backends import driver, ray_cluster, versions

        with ray_cluster.connected(resources):
            versions.check(versions.alive())
            return driver.drive(function, placed(experiment), *args, name=_driver_name(experiment), callback=callback)
    stop = threading.Event()
    try:
        with ExitStack() as stack:
            open_workers = _opener(stack)
            choice = placement.before_planning(experiment, method)
            if meanwhile is not None and choice.resources.backend == "ray":
                experiment = placement.placed(experiment, choice, callback)
                open_workers(choice.resources, stop)
                threading.Thread(target=meanwhile, daemon=True).start()
            return function(config.absolute(experiment), *args, callback=callback, stop=stop, open_workers=open_workers)
    except KeyboardInterrupt:
        raise Interrupted("stopped; continue with --resume") from None


def _opener(stack: ExitStack) -> OpenWorkers:
    """Start workers in this process, or on one local Ray that ends with the stack."""

    @cache
    def local_ray(resources: ResourceSettings) -> Backend:
        check_variables()
        from fedpgp.federation.backends.local_ray import LocalRay

        return stack.enter_context(LocalRay(resources))

    def open_workers(resources: ResourceSettings, stop: threading.Event) -> Backend:
        return make_backend(resources, stop) if resources.backend == "serial" else local_ray(resources)

    return open_workers


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
