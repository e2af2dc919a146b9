"""The driver actor: runs a function where the cluster is, and lets a command attach, follow and stop it."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorUnavailableError, AuthenticationError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedpgp.config import ResourceSettings
from fedpgp.core import plugins
from fedpgp.core.callbacks import Event, EventStream, RunCallback
from fedpgp.core.errors import FedPGPError, Interrupted, ResourceError
from fedpgp.core.plugins import Code
from fedpgp.federation.backends.actors import cause, first_line, nodes
from fedpgp.federation.resources import share_heaps

log = logging.getLogger(__name__)

NAMESPACE = "fedpgp"
RESTARTS = 2
POLL_SECONDS = 1.0
KNOCK_SECONDS = 10.0


@contextmanager
def connected(resources: ResourceSettings) -> Iterator[None]:
    """A connection to Ray: the one that is open already, the given or RAY_ADDRESS cluster, else a local one of our own.

    Ray lets nobody into either without its token (a local one makes its own, and asks for it on every interface that it
    listens on). The process has few heaps from now on, as it will have many threads.

    Raises:
        ResourceError: there is no cluster at the address, or it wants a token.
    """
    if ray.is_initialized():
        yield
        return
    address = lasting_address(resources)
    if address is not None:
        _check_reachable(address)
    local = {"num_cpus": own_cpus(resources), "include_dashboard": False} if address is None else {"address": address}
    share_heaps()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        raise _unreachable(address or "this machine", error) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # ray has put its own there, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """See whether anything listens at `HOST:PORT`: Ray itself goes on asking for minutes, and then ends the process."""
    place = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if place is None:
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from None


def _unreachable(address: str, error: Exception) -> ResourceError:
    what = " ".join(str(error).split())
    return ResourceError(
        f"Ray at {address}: {what[:200]}; check that the head runs, and if it uses token authentication set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token)"
    )


def own_cpus(resources: ResourceSettings) -> int:
    """CPUs of a cluster of our own, sized to the plan: on one core two actors take turns, which is slow but right."""
    return max(os.cpu_count() or 1, int(resources.actors * resources.cpus_per_actor + 0.999))


def lasting_address(resources: ResourceSettings) -> str | None:
    """The address of a cluster that outlives this command; None: there is none, a local one would be started."""
    return resources.address or os.environ.get("RAY_ADDRESS") or None


def cluster(resources: ResourceSettings) -> list[Mapping[str, float]] | None:
    """What each node of the cluster has, as Ray counts it; None: there is no cluster, a local one would be started.

    Raises:
        ResourceError: there is no cluster at the address.
    """
    if not ray.is_initialized() and lasting_address(resources) is None:
        return None
    with connected(resources):
        return nodes()


def one_folder(resources: ResourceSettings) -> bool:
    """Whether the working folder is the same for all processes and lasts: one node, no working folder of a job."""
    if not ray.is_initialized() and lasting_address(resources) is None:
        return True
    with connected(resources):
        return len(nodes()) == 1 and not ray.get_runtime_context().runtime_env.get("working_dir")


@dataclass(frozen=True)
class Cursor:
    """How much of a driver's events has been seen, and of which life of its process."""

    life: str = ""
    seen: int = 0


class _Driver:
    """Runs a function in a thread of its own and keeps its events.

    Ray replays only `__init__` when it restarts the process, so everything starts from there.
    """

    def __init__(self, code: Sequence[Code], function: Callable[..., Any], args: Sequence[Any], detached: bool) -> None:
        self._life = uuid.uuid4().hex
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
        if own is not None:  # nobody else ends a detached driver; those who are attached get the end first
            time.sleep(2 * POLL_SECONDS)
            ray.kill(own)

    def _append(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def events_since(self, cursor: Cursor, timeout: float) -> tuple[Cursor, list[Event], bool]:
        """The events after `cursor`, waiting for one at most `timeout` seconds, and whether all is over."""
        seen = cursor.seen if cursor.life == self._life else 0
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > seen or self._outcome is not None, timeout)
            return Cursor(self._life, len(self._events)), self._events[seen:], self._outcome is not None

    def last_event(self) -> Event | None:
        """The newest event; None before the first."""
        return self._events[-1] if self._events else None

    def stop(self) -> None:
        """Ask the function to end now."""
        self._stop.set()

    def outcome(self) -> Any:
        """The function's result, or its error raised."""
        result, error = self._outcome or (None, FedPGPError("the driver is still running"))
        if error is not None:
            raise error
        return result


def start(function: Callable[..., Any], *args: Any, name: str, detached: bool = False) -> ActorHandle:
    """A driver actor on this node that runs `function(*args, restarted=..., callback=..., stop=...)`.

    If its process dies, Ray starts it again (twice at most) with `restarted` true. It does not outlive this
    node: the run's folder may be nowhere else.
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
    """The driver of that name.

    Raises:
        ResourceError: there is none on this cluster.
    """
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
    """Ask the driver of that name to end now.

    Raises:
        ResourceError: there is none on this cluster.
    """
    ray.get(find(name).stop.remote())


def follow(driver: ActorHandle, callback: RunCallback) -> Any:
    """Pass a driver's events to a callback until it ends, and return its result.

    Raises:
        FedPGPError: what the function raised, or the driver's process died for good.
    """
    cursor, over = Cursor(), False
    try:
        while not over:
            try:
                cursor, events, over = ray.get(driver.events_since.remote(cursor, POLL_SECONDS))
            except ActorUnavailableError:
                log.warning("the driver's process died; it starts again from its last checkpoint")
                time.sleep(POLL_SECONDS)
                continue
            for event in events:
                event.replay(callback)
        return ray.get(driver.outcome.remote())
    except RayTaskError as error:
        raise cause(error) from None
    except RayActorError as error:
        raise FedPGPError(f"the driver actor died: {first_line(error)}; run again with --resume") from None


def drive(function: Callable[..., Any], *args: Any, name: str, callback: RunCallback) -> Any:
    """Start a driver, follow it, and end it. Ctrl-C asks it to stop and waits for that; a second one leaves at once.

    Raises:
        Interrupted: it has stopped, or was left before it had.
    """
    driver = start(function, *args, name=name)
    try:
        try:
            return follow(driver, callback)
        except KeyboardInterrupt:
            ray.get(driver.stop.remote())
            return follow(driver, RunCallback())
    except KeyboardInterrupt:
        raise Interrupted("left before it had stopped; no round is lost, go on with --resume") from None
    finally:
        ray.kill(driver)
