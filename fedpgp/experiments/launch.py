"""How work is started, followed and stopped: here or in a driver actor on Ray, mirrored to MLflow."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpgp import config, tracking
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.errors import Interrupted, ResourceError
from fedpgp.experiments import estimation
from fedpgp.experiments import runner as experiments
from fedpgp.experiments.planning import plan
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.extraction import Forecast
from fedpgp.federation.records import Progress

Emit = Callable[[Progress], None]


def run(experiment: Experiment, resume: bool, emit: Emit) -> Path:
    """Run an experiment where its settings say, and wait for it; its folder. See `experiment.run`."""
    result: Path = _do(run_mirrored, experiment, resume, emit=emit)
    return result


def extract(experiment: Experiment, emit: Emit) -> list[Path]:
    """Extract the features that an experiment needs, and nothing more; their files."""
    result: list[Path] = _do(_extract, experiment, emit=emit)
    return result


def forecast(experiment: Experiment, emit: Emit) -> list[Forecast]:
    """What `extract` would take, in bytes and time; a few images are encoded here to know it, and nothing is kept."""
    with warnings_told(emit):
        emit(Progress("prepare", note="reading data and backbone"))
        return estimation.forecast(plan(config.absolute(experiment)))


def detach(experiment: Experiment, resume: bool) -> str:
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
    with driver.connected(experiment.resources):
        name = _driver_name(experiment)
        driver.start(run_mirrored, placed(experiment), resume, name=name, detached=True)
        return name


def attach(name: str, resources: ResourceSettings, emit: Emit) -> Path:
    """Follow a driver until its run ends, and leave it alone on Ctrl-C; the run's folder."""
    from fedpgp.federation.backends import driver

    with driver.connected(resources):
        result: Path = driver.follow(driver.find(name), emit)
        return result


def stop(name: str, resources: ResourceSettings) -> None:
    """Ask a driver to abandon its round and end; what was committed stays, `--resume` goes on."""
    from fedpgp.federation.backends import driver

    with driver.connected(resources):
        driver.stop(name)


def drivers(resources: ResourceSettings) -> dict[str, Progress | None]:
    """The drivers on a cluster, and the last that each has told."""
    from fedpgp.federation.backends import driver

    with driver.connected(resources):
        return driver.last_events()


def run_mirrored(
    experiment: Experiment,
    resume: bool,
    *,
    restarted: bool = False,
    emit: Emit,
    stop: threading.Event,
    backend: Backend | None = None,
) -> Path:
    """`experiment.run` in this process, with MLflow following its rows and warnings going the way of progress.

    A driver whose process died comes back with `restarted`, and then goes on from its checkpoint.
    """
    with warnings_told(emit), mirrored(experiment, emit) as tell:
        return experiments.run(experiment, resume, tell, stop, backend, restarted=restarted)


@contextmanager
def mirrored(
    experiment: Experiment,
    emit: Emit,
    parent: tracking.Parent | None = None,
    close: Callable[[tracking.Mirror], None] = tracking.Mirror.close,
) -> Iterator[Emit]:
    """A way of progress that MLflow follows too, from the first word about the run's folder to the end.

    Args:
        parent: the trial that the run is a fold of.
        close: what is done with the mirror at the end.
    """
    mirror: tracking.Mirror | None = None

    def tell(progress: Progress) -> None:
        nonlocal mirror
        emit(progress)
        if progress.run and experiment.tracking.mlflow:
            uri = experiment.tracking.uri or tracking.default_uri(experiment.storage.root)
            mirror = mirror or tracking.Mirror(Path(progress.run), uri, parent)
            mirror.notify()

    try:
        yield tell
    finally:
        if mirror is not None:
            close(mirror)


class Closing:
    """Mirrors of runs that have ended, which have a moment to end, too, while the next run goes on."""

    def __init__(self, at_once: int = 2) -> None:
        self._left: deque[tracking.Mirror] = deque()
        self._at_once = at_once

    def add(self, mirror: tracking.Mirror) -> None:
        """Let it end; wait for one that was to end long ago."""
        mirror.finish()
        self._left.append(mirror)
        if len(self._left) > self._at_once:
            self._left.popleft().close()

    def close(self) -> None:
        """Wait for all of them."""
        while self._left:
            self._left.popleft().close()


def _extract(experiment: Experiment, *, restarted: bool = False, emit: Emit, stop: threading.Event) -> list[Path]:
    with warnings_told(emit):
        return experiments.extract_only(experiment, emit, stop)


def _do(function: Callable[..., Any], experiment: Experiment, *args: Any, emit: Emit) -> Any:
    """Run a function that takes `emit` and `stop` where the settings say."""
    if experiment.resources.backend == "serial":
        try:
            return function(config.absolute(experiment), *args, emit=emit, stop=threading.Event())
        except KeyboardInterrupt:
            raise Interrupted("stopped; nothing is lost, go on with --resume") from None
    from fedpgp.federation.backends import driver

    with driver.connected(experiment.resources):
        return driver.drive(function, placed(experiment), *args, name=_driver_name(experiment), emit=emit)


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
def warnings_told(emit: Emit) -> Iterator[None]:
    """Warnings of the package go the way of all progress, so that they reach the person from any process."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emit(Progress("warning", note=record.getMessage()))

    logger, handler = logging.getLogger("fedpgp"), Handler(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
