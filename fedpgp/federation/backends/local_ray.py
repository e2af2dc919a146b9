"""A Ray on this machine with its actors, which starts in a thread while the run is planned."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from fedpgp.config import ResourceSettings
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import Common, Job
from fedpgp.federation.backends.ray_cluster import connected


class LocalRay:
    """A backend whose actors are those of a Ray of its own, for a `with` block; both have ended when it is left.

    An error of the start is raised where the actors are needed, by `load`. The thread lives until the end, because the
    kernel ends Ray's processes with the thread that started them.
    """

    def __init__(self, resources: ResourceSettings) -> None:
        self._resources = resources
        self._started, self._end = threading.Event(), threading.Event()
        self._pool: ActorPool | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="local ray")

    def __enter__(self) -> LocalRay:
        """Begin to start Ray and the actors."""
        self._on_sigterm = signal.getsignal(signal.SIGTERM)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End them, also while they start, and wait for it."""
        self.close()
        self._thread.join()

    def load(self, job: Job) -> None:
        """See `Backend.load`; waits for the start, and raises its error."""
        self._actors().load(job)

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """See `Backend.map`."""
        return self._actors().map(method, calls, common, work)

    def close(self) -> None:
        """End them. Returns at once."""
        self._end.set()

    def _actors(self) -> ActorPool:
        self._started.wait()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)  # ray's own handler ends the process at once
        if self._pool is None:
            raise self._error or RuntimeError("Ray was not started")
        return self._pool

    def _run(self) -> None:
        try:
            with connected(self._resources), closing(ActorPool(self._resources, self._end)) as pool:
                self._pool = pool
                self._started.set()
                self._end.wait()
        except BaseException as error:  # raised by `_actors`, in the thread that needs the actors
            self._error = error
        finally:
            self._started.set()
