"""The Ray backend: client actors with fractional GPUs, and the driver actor that a command attaches to.

The only file of this folder that imports ray.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedpgp.config import ResourceSettings
from fedpgp.errors import FedPGPError, ResourceError
from fedpgp.federation.backend import Job
from fedpgp.federation.packing import shortfall

log = logging.getLogger(__name__)

NAMESPACE = "fedpgp"
ATTEMPTS = 4
"""How often a block is sent out before the round fails."""


@contextmanager
def connected(resources: ResourceSettings) -> Iterator[None]:
    """A connection to Ray: the one that is open already, the given or RAY_ADDRESS cluster, else a local one of our own.

    Raises:
        ResourceError: there is no cluster at the address, or it wants a token.
    """
    if ray.is_initialized():
        yield
        return
    address = resources.address or os.environ.get("RAY_ADDRESS")
    # A cluster of our own is sized to the plan: on one core two actors take turns, which is slow but right.
    wanted = max(os.cpu_count() or 1, int(resources.actors * resources.cpus_per_actor + 0.999))
    local = {"num_cpus": wanted, "include_dashboard": False} if address is None else {"address": address}
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise ResourceError(
            f"Ray at {address or 'this machine'}: {what[:200]}; check that the head runs, and if it uses token "
            "authentication set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token)"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


class _Client:
    """A client actor: holds one job, serves its calls."""

    def __init__(self, threads: int, gpus: float) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")
        if self._device.type == "cuda" and gpus < 1:
            torch.cuda.set_per_process_memory_fraction(gpus)
        self._worker: Any = None

    def ready(self) -> dict[str, Any]:
        """Where this actor is."""
        return {
            "device": self._device.type,
            "gpu_ids": ray.get_gpu_ids(),
            "node": ray.get_runtime_context().get_node_id(),
        }

    def load(self, job: Job) -> dict[str, Any]:
        """Hold this job in place of the one before."""
        self._worker = job.build(self._device)
        return self.ready()

    def call(self, method: str, call: Any) -> Any:
        """One block."""
        return getattr(self._worker, method)(call)


class ActorPool:
    """Client actors. Any of them serves any call; a lost one costs only its call, which goes to another at once.

    Args:
        resources: how many actors, and what each reserves.

    Raises:
        ResourceError: the plan does not fit the cluster, or the actors are not ready in time.
    """

    def __init__(self, resources: ResourceSettings) -> None:
        self._resources = resources
        self._job: Any = None
        self._starting: dict[Any, ActorHandle] = {}
        self._idle: list[ActorHandle] = []
        _preflight(resources)
        for _ in range(resources.actors):
            self._start()
        self._await_all()

    @property
    def placement(self) -> list[dict[str, Any]]:
        """Device, GPU ids and node of each actor."""
        return ray.get([actor.ready.remote() for actor in self._idle])  # type: ignore[no-any-return]

    def load(self, job: Job) -> None:
        """Send the job once to the object store, from where every actor takes it."""
        self._job = ray.put(job)
        actors = [*self._idle, *self._starting.values()]
        self._idle, self._starting = [], {actor.load.remote(self._job): actor for actor in actors}
        self._await_all()

    def map(self, method: str, calls: Sequence[Any]) -> Iterator[Any]:
        """The results of the calls, in their order, each as soon as those before it are there."""
        waiting = deque(range(len(calls)))
        attempts = [0] * len(calls)
        running: dict[Any, tuple[int, ActorHandle]] = {}
        results: dict[int, Any] = {}
        following = 0
        try:
            while following < len(calls):
                while waiting and self._idle:
                    index, actor = waiting.popleft(), self._idle.pop()
                    attempts[index] += 1
                    running[actor.call.remote(method, calls[index])] = (index, actor)
                for reference in self._wait(running):
                    if reference in self._starting:
                        self._welcome(reference)
                        continue
                    index, actor = running.pop(reference)
                    try:
                        results[index] = self._result(reference, actor)
                    except RayActorError as error:
                        what = f"{method} block {index + 1} of {len(calls)}: its actor died"
                        if attempts[index] == ATTEMPTS:
                            raise FedPGPError(f"{what} {ATTEMPTS} times; {_first_line(error)}") from None
                        log.warning("%s and is replaced, the block is sent again", what)
                        waiting.appendleft(index)
                while following in results:
                    yield results.pop(following)
                    following += 1
        finally:  # after an error the others finish what they have and are there for what comes next
            self._idle += [actor for _, actor in running.values()]

    def _result(self, reference: Any, actor: ActorHandle) -> Any:
        """What a call gave. Its actor is free again, or replaced if it died."""
        try:
            result = ray.get(reference)
        except RayActorError:
            ray.kill(actor)
            self._start()
            raise
        except RayTaskError as error:
            self._idle.append(actor)
            raise _cause(error) from None
        self._idle.append(actor)
        return result

    def close(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *self._starting.values()]:
            ray.kill(actor)
        self._idle, self._starting = [], {}

    def _start(self) -> None:
        resources = self._resources
        actor = (
            ray.remote(_Client)
            .options(num_cpus=resources.cpus_per_actor, num_gpus=resources.gpus_per_actor, max_restarts=0)
            .remote(resources.threads, resources.gpus_per_actor)
        )
        reference = actor.ready.remote() if self._job is None else actor.load.remote(self._job)
        self._starting[reference] = actor

    def _wait(self, running: dict[Any, tuple[int, ActorHandle]]) -> list[Any]:
        """Whatever is done next: a call, or an actor that has become ready."""
        timeout = None if running else self._resources.ready_timeout
        done, _ = ray.wait([*running, *self._starting], timeout=timeout)
        if not done:
            raise ResourceError(f"no actor became ready within {timeout:.0f} s; check the cluster's free resources")
        return list(done)

    def _await_all(self) -> None:
        """Wait until every starting actor is ready."""
        fallback = False
        done, late = ray.wait(
            list(self._starting), num_returns=len(self._starting), timeout=self._resources.ready_timeout
        )
        for reference in done:
            fallback |= self._welcome(reference)
        if late:
            count = self._resources.actors
            self.close()
            raise ResourceError(
                f"{len(late)} of {count} actors not ready within {self._resources.ready_timeout:.0f} s; "
                "fewer resources.actors, or a longer resources.ready_timeout"
            )
        if fallback and self._job is None:
            log.warning("resources.gpus_per_actor is set, but torch sees no GPU there: running on the CPU")

    def _welcome(self, reference: Any) -> bool:
        """Take a ready actor in; whether it wanted a GPU and runs on the CPU."""
        actor = self._starting.pop(reference)
        try:
            place = ray.get(reference)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            raise FedPGPError(f"a client actor died while starting: {_first_line(error)}") from None
        self._idle.append(actor)
        return bool(self._resources.gpus_per_actor and place["device"] == "cpu")


class _Driver:
    """Runs a function in a thread of its own and keeps its events, so that a command can attach and follow."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._changed = threading.Condition()
        self._events: list[Any] = []
        self._stop = threading.Event()
        self._outcome: tuple[Any, BaseException | None] | None = None
        threading.Thread(target=self._run, args=(function, args), daemon=True).start()

    def _run(self, function: Callable[..., Any], args: Sequence[Any]) -> None:
        try:
            outcome: tuple[Any, BaseException | None] = (function(*args, emit=self._emit, stop=self._stop), None)
        except BaseException as error:
            outcome = (None, error)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def _emit(self, event: Any) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def events_since(self, count: int, timeout: float) -> tuple[list[Any], bool]:
        """The events after the first `count`, waiting for one at most `timeout` seconds, and whether all is over."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > count or self._outcome is not None, timeout)
            return self._events[count:], self._outcome is not None

    def stop(self) -> None:
        """Ask the function to end after what it is doing."""
        self._stop.set()

    def outcome(self) -> Any:
        """The function's result, or its error raised."""
        result, error = self._outcome or (None, FedPGPError("the driver is still running"))
        if error is not None:
            raise error
        return result


def drive(function: Callable[..., Any], *args: Any, emit: Callable[[Any], None]) -> Any:
    """Run `function(*args, emit=..., stop=...)` in a driver actor, pass its events on, and return its result.

    Ctrl-C asks it to stop after the current round, and waits for that; a second one leaves at once.

    Raises:
        FedPGPError: what the function raised, or the driver's process died.
    """
    driver = ray.remote(_Driver).options(num_cpus=0, max_concurrency=4).remote(function, *args)
    try:
        try:
            _follow(driver, emit)
        except KeyboardInterrupt:
            ray.get(driver.stop.remote())
            _follow(driver, lambda event: None)
        return ray.get(driver.outcome.remote())
    except RayTaskError as error:
        raise _cause(error) from None
    except RayActorError as error:
        raise FedPGPError(f"the driver actor died: {_first_line(error)}; run again with --resume") from None
    finally:
        ray.kill(driver)


def _follow(driver: ActorHandle, emit: Callable[[Any], None]) -> None:
    seen, over = 0, False
    while not over:
        events, over = ray.get(driver.events_since.remote(seen, 1.0))
        seen += len(events)
        for event in events:
            emit(event)


def _preflight(resources: ResourceSettings) -> None:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    short = shortfall(resources.actors, resources.cpus_per_actor, resources.gpus_per_actor, nodes)
    if short:
        raise ResourceError(short)


def _cause(error: RayTaskError) -> BaseException:
    """Our own error as it was raised; anything else whole, with the remote traceback."""
    cause = error.cause
    return cause if isinstance(cause, FedPGPError | KeyboardInterrupt) else error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
