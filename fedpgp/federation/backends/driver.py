"""The driver actor: runs a function on the cluster; commands can follow and stop it."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedpgp.core import plugins
from fedpgp.core.callbacks import Event, EventStream, RunCallback
from fedpgp.core.errors import FedPGPError, Interrupted, ResourceError
from fedpgp.core.plugins import Code
from fedpgp.federation.backends.actors import cause, first_line
from fedpgp.federation.backends.ray_cluster import NAMESPACE

log = logging.getLogger(__name__)

RESTARTS = 2
POLL_SECONDS = 1.0


class _Driver:
    """Runs a function in a thread and keeps its events.

    When Ray restarts the process it repeats only `__init__`, so that starts the function.
    """

    def __init__(self, code: Sequence[Code], function: Callable[..., Any], args: Sequence[Any], detached: bool) -> None:
        self._process = uuid.uuid4().hex
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._stop = threading.Event()
        self._outcome: tuple[Any, BaseException | None] | None = None
        context = ray.get_runtime_context()
        restarted = context.was_current_actor_reconstructed
        own = context.current_actor if detached else None
        threading.Thread(target=self._run, args=(function, args, restarted, own), daemon=True).start()

    def _run(self, function: Callable[..., Any], args: Sequence[Any], restarted: bool, own: ActorHandle | None) -> None:
        try:
            result = function(*args, restarted=restarted, callback=EventStream(self._append), stop=self._stop)
            outcome: tuple[Any, BaseException | None] = (result, None)
        except BaseException as error:
            outcome = (None, error)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()
        if own is not None:  # a detached driver ends itself, after attached commands have read the outcome
            time.sleep(2 * POLL_SECONDS)
            ray.kill(own)

    def _append(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def events_since(self, cursor: tuple[str, int], timeout: float) -> tuple[tuple[str, int], list[Event], bool]:
        """Wait up to `timeout` seconds for events after `cursor`, a process and the number of its events read so far.

        Returns the next cursor, the events, and whether the function has ended.
        """
        read = cursor[1] if cursor[0] == self._process else 0
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > read or self._outcome is not None, timeout)
            return (self._process, len(self._events)), self._events[read:], self._outcome is not None

    def last_event(self) -> Event | None:
        """The newest event; None before the first."""
        return self._events[-1] if self._events else None

    def stop(self) -> None:
        """Ask the function to stop."""
        self._stop.set()

    def outcome(self) -> Any:
        """Return the function's result, or raise its error."""
        result, error = self._outcome or (None, FedPGPError("the driver is still running"))
        if error is not None:
            raise error
        return result


def start(function: Callable[..., Any], *args: Any, name: str, detached: bool = False) -> ActorHandle:
    """Start a driver actor on this node that runs `function(*args, restarted=..., callback=..., stop=...)`.

    If its process dies, Ray restarts it, at most twice, with `restarted` true. It never moves to another node, which
    may not have the run's folder.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return (
        ray.remote(_Driver)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached" if detached else None,
            num_cpus=0,
            max_restarts=RESTARTS,
            max_concurrency=4,
            scheduling_strategy=here,
        )
        .remote(plugins.to_send(), function, args, detached)
    )


def find(name: str) -> ActorHandle:
    """Find a driver by name; raise `ResourceError` if it is not on this cluster."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        known = ", ".join(names()) or "none"
        raise ResourceError(f"no driver {name!r} is running here (running: {known}); see `fedpgp runs`") from None


def names() -> list[str]:
    """The drivers on this cluster."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)


def last_events() -> dict[str, Event | None]:
    """The newest event of every driver on this cluster."""
    handles = {name: find(name) for name in names()}
    return dict(zip(handles, ray.get([handle.last_event.remote() for handle in handles.values()]), strict=True))


def stop(name: str) -> None:
    """Ask the driver of that name to stop; raise `ResourceError` if it is not on this cluster."""
    ray.get(find(name).stop.remote())


def follow(driver: ActorHandle, callback: RunCallback) -> Any:
    """Pass a driver's events to a callback until it ends; return its result, or raise its error or that it died."""
    cursor, ended = ("", 0), False
    try:
        while not ended:
            try:
                cursor, events, ended = ray.get(driver.events_since.remote(cursor, POLL_SECONDS))
            except ActorUnavailableError:
                log.warning("the driver's process died; it restarts from its last checkpoint")
                time.sleep(POLL_SECONDS)
                continue
            for event in events:
                event.replay(callback)
        return ray.get(driver.outcome.remote())
    except RayTaskError as error:
        raise cause(error) from None
    except RayActorError as error:
        raise FedPGPError(f"the driver actor died: {first_line(error)}; rerun with --resume") from None


def drive(function: Callable[..., Any], *args: Any, name: str, callback: RunCallback) -> Any:
    """Run a function in a driver. Ctrl-C asks it to stop and waits; a second Ctrl-C raises `Interrupted` at once."""
    driver = start(function, *args, name=name)
    try:
        try:
            return follow(driver, callback)
        except KeyboardInterrupt:
            ray.get(driver.stop.remote())
            return follow(driver, RunCallback())
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted before the driver had stopped; no committed round is lost, continue with --resume"
        ) from None
    finally:
        ray.kill(driver)
