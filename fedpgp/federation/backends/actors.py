"""The Ray backend: worker actors with fractional GPUs. Any actor can run any block."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError, RpcError

from fedpgp.core import plugins, provenance
from fedpgp.core.errors import FedPGPError, Interrupted, MissingCacheError, ResourceError
from fedpgp.core.plugins import Code
from fedpgp.federation.backends import versions
from fedpgp.federation.backends.base import Common, Job, build, invoke
from fedpgp.federation.backends.device import open_device
from fedpgp.federation.resources import shortfall

if TYPE_CHECKING:
    from fedpgp.config import ResourceSettings

log = logging.getLogger(__name__)

ATTEMPTS = 4  # per block, and failed starts of actors in a row, before the run fails
INLINE_BYTES = 100 * 1024  # Ray puts larger arguments into the object store, one copy per call
AHEAD = 4  # calls per actor, from the next result on, of which the longest starts first: so many results may wait
CANCELLED = 1  # gRPC's code of a request to a server that has ended
POLL_SECONDS = 0.5  # interval at which requests to stop and late blocks are noticed


class _Client:
    """A worker actor: holds one job and runs its calls."""

    def __init__(self, code: Sequence[Code], threads: int, gpus: float) -> None:
        """`code` makes plug-ins importable: Ray unpickles it before any job."""
        torch.set_num_threads(threads)
        self._gpus = gpus
        self._software = provenance.software()
        self._worker: Any = None

    def load(self, job: Job | None) -> dict[str, Any]:
        """Replace the job, if there is one yet; return the node, the versions and the device of this actor."""
        device = open_device(self._gpus)
        if job is not None:
            self._worker = build(job, device)
        node_id = ray.get_runtime_context().get_node_id()
        node = f"node {node_id[:8]} at {ray.util.get_node_ip_address()}"
        own = {"node": node, "node_id": node_id, "software": self._software}
        return {**own, "device": device.type, "gpu_ids": ray.get_gpu_ids()}

    def call(self, method: str, call: Any, common: Common | None) -> Any:
        """Run one call."""
        return invoke(self._worker, method, call, common)


@dataclass(frozen=True, eq=False)
class _Actor:
    """A ready actor."""

    handle: ActorHandle
    location: dict[str, Any]


@dataclass(frozen=True)
class _Running:
    """A call that an actor is running."""

    index: int
    actor: _Actor
    since: float


class ActorPool:
    """A pool of worker actors. If an actor is lost, only its call is repeated, by another; a replacement is started.

    `stop` is set from outside to interrupt the pool. Raises `ResourceError` if the actors do not fit the cluster or are
    not ready in time, or if a node or an actor has other versions than this process.
    """

    def __init__(self, resources: ResourceSettings, stop: threading.Event | None = None) -> None:
        self._resources = resources
        self._stop = stop or threading.Event()
        self._job: Any = None
        self._starting: dict[Any, ActorHandle] = {}
        self._idle: list[_Actor] = []
        self._failed_starts = 0
        if short := shortfall(resources.actors, resources.cpus_per_actor, resources.gpus_per_actor, nodes()):
            raise ResourceError(short)
        versions.check(versions.alive(), own=False)
        for _ in range(resources.actors):
            self._start()
        self._await_all()
        if resources.gpus_per_actor and any(actor.location["device"] == "cpu" for actor in self._idle):
            log.warning("resources.gpus_per_actor is set, but torch sees no GPU there: running on the CPU")

    def load(self, job: Job) -> None:
        """Put the job into the object store, and load it in every actor."""
        self._job = ray.put(job)
        handles = [*(actor.handle for actor in self._idle), *self._starting.values()]
        self._idle, self._starting = [], {handle.load.remote(self._job): handle for handle in handles}
        self._await_all()

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """Yield the results of the calls in order, each as soon as it and all before it are complete.

        Of the next few calls the one with the most `work` starts first, so that all actors end together.
        `common` is put into the object store once, where the actors of a node read it without a copy, unless it is so
        small that Ray sends it with each call. Raises `FedPGPError` if a call raised it, or if its actors died or were
        late `ATTEMPTS` times; `Interrupted` if `stop` was set or Ray has ended.
        """
        waiting, attempts = deque(range(len(calls))), [0] * len(calls)
        running: dict[Any, _Running] = {}
        results: dict[int, Any] = {}
        next_index = 0
        large = common is not None and sum(value.nbytes for value in common.values()) > INLINE_BYTES
        shared = ray.put(common) if large else common
        try:
            while next_index < len(calls):
                while waiting and self._idle:
                    index = _longest(waiting, work, next_index + AHEAD * self._resources.actors)
                    actor = self._idle.pop()
                    waiting.remove(index)
                    attempts[index] += 1
                    reference = actor.handle.call.remote(method, calls[index], shared)
                    running[reference] = _Running(index, actor, time.monotonic())
                for reference, lost in self._ended(running):
                    ended = running.pop(reference)
                    try:
                        results[ended.index] = self._result(reference, ended.actor, lost)
                    except _Lost as error:
                        what = f"{method} {_block(ended.index, calls)} on {ended.actor.location['node']}: {error}"
                        if attempts[ended.index] == ATTEMPTS:
                            raise FedPGPError(f"{what}; gave up after {ATTEMPTS} attempts") from None
                        log.warning("%s; repeating it on another actor", what)
                        waiting.appendleft(ended.index)
                while next_index in results:
                    yield results.pop(next_index)
                    next_index += 1
        finally:  # after an error the other actors finish their calls and remain available
            self._idle += [one.actor for one in running.values()]

    def close(self) -> None:
        """End all actors."""
        for handle in [*(actor.handle for actor in self._idle), *self._starting.values()]:
            ray.kill(handle)
        self._idle, self._starting = [], {}

    def _ended(self, running: dict[Any, _Running]) -> Iterator[tuple[Any, str | None]]:
        """Calls that have ended, and calls that are too late, with the reason."""
        done, _ = ray.wait([*running, *self._starting], timeout=POLL_SECONDS)
        if self._stop.is_set():
            raise Interrupted("stopped by the user")
        for reference in done:
            if reference in running:
                yield reference, None
            else:
                self._add(reference)
        limit = self._resources.block_timeout
        for reference, work in list(running.items()) if limit else ():
            if reference not in done and time.monotonic() - work.since > (limit or 0):
                yield reference, f"no answer within {limit:g} s"
        if running or self._idle:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > self._resources.ready_timeout:
            raise ResourceError(f"no actor became ready within {self._resources.ready_timeout:g} s; see `ray status`")

    def _result(self, reference: Any, actor: _Actor, lost: str | None) -> Any:
        """The result of a call. Its actor becomes idle, or is replaced if it was lost."""
        try:
            if lost:
                raise _Lost(lost)
            result = ray.get(reference)
        except (RayActorError, OutOfMemoryError, _Lost) as error:
            ray.kill(actor.handle)
            self._start()
            raise _Lost(_why(error)) from None
        except RayTaskError as error:
            self._idle.append(actor)
            raise cause(error) from None
        self._idle.append(actor)
        return result

    def _start(self) -> None:
        """Start an actor; raise `Interrupted` if Ray itself has ended, as when all of its nodes are shut down."""
        resources = self._resources
        new = ray.remote(_Client).options(
            num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor, max_restarts=0
        )
        try:
            handle = new.remote(plugins.to_send(), resources.threads, resources.gpus_per_actor)
        except RpcError as error:
            if error.rpc_code != CANCELLED:
                raise
            raise Interrupted("Ray was shut down") from None
        self._starting[handle.load.remote(self._job)] = handle

    def _await_all(self) -> None:
        """Wait until every starting actor is ready."""
        deadline = time.monotonic() + self._resources.ready_timeout
        while self._starting:
            done, _ = ray.wait(list(self._starting), timeout=POLL_SECONDS)
            for reference in done:
                self._add(reference)
            if self._stop.is_set():
                self.close()
                raise Interrupted("stopped by the user")
            if self._starting and time.monotonic() > deadline:
                late, count = len(self._starting), self._resources.actors
                self.close()
                raise ResourceError(
                    f"{late} of {count} actors not ready within {self._resources.ready_timeout:g} s; "
                    "lower resources.actors or raise resources.ready_timeout"
                )
        self._alone_since = time.monotonic()

    def _add(self, reference: Any) -> None:
        """Add a ready actor to the pool, or start another if it died."""
        handle = self._starting.pop(reference)
        try:
            actor = _Actor(handle, ray.get(reference))
            versions.check_answer(actor.location["node_id"], actor.location.get("software", {}))
            self._idle.append(actor)
            self._failed_starts = 0
        except RayTaskError as error:
            versions.check(versions.alive(), own=False)  # other code may raise anything
            raise cause(error) from None
        except (RayActorError, OutOfMemoryError) as error:
            versions.check(versions.alive(), own=False)
            self._failed_starts += 1
            if self._failed_starts == ATTEMPTS:
                raise FedPGPError(f"{ATTEMPTS} worker actors died while starting: {_why(error)}") from None
            self._start()


class _Lost(Exception):
    """An actor died or was too late."""


def nodes() -> list[Mapping[str, float]]:
    """The resources of each living node, used or not."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def stored_bytes() -> float:
    """Bytes of objects in the shared memory of all nodes."""
    kind = "object_store_memory"
    return float(ray.cluster_resources()[kind] - ray.available_resources().get(kind, 0.0))


def _longest(waiting: Sequence[int], work: Sequence[int], end: int) -> int:
    """The first waiting call; if its work is known and it is before `end`, the longest one of those before `end`."""
    near = list(takewhile(lambda index: index < end, waiting if work else ())) or [waiting[0]]
    return max(near, key=lambda index: work[index] if work else 0)


def _block(index: int, calls: Sequence[Any]) -> str:
    clients = np.asarray(getattr(calls[index], "clients", ()))
    some = ", ".join(map(str, clients[:10])) + (", ..." if len(clients) > 10 else "")
    return f"block {index + 1} of {len(calls)}" + (f" (clients {some})" if some else "")


def cause(error: RayTaskError) -> BaseException:
    """The original error if it is one of this project; otherwise `error` with its remote traceback.

    A file that only another node lacks is a folder that the nodes do not share.
    """
    original = error.cause
    if isinstance(original, FileNotFoundError | MissingCacheError) and original.filename and len(nodes()) > 1:
        path = Path(str(original.filename))
        if path.exists() or path.parent.is_dir():
            found = re.search(r"\bip=([^,)\s]+)", str(error))  # Ray's exceptions have no attribute for it
            where = f"the node at {found[1]}" if found else "a node"
            return ResourceError(
                f"{path}: is missing on {where}; storage.root (also with storage.uri) and data.root must be folders "
                "that all nodes share, such as a network file system"
            )
    return original if isinstance(original, FedPGPError | KeyboardInterrupt) else error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _why(error: Exception) -> str:
    """Why an actor was lost, in one line, with advice if Ray killed it for memory."""
    if isinstance(error, OutOfMemoryError):
        return f"{first_line(error).rstrip('.')}; lower resources.actors or federation.block_size"
    return first_line(error)
