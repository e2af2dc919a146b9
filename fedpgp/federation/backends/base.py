"""The interface of a backend, and the serial one, the reference of the others: results are equal for all."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from fedpgp.core.errors import Interrupted
from fedpgp.federation.backends.device import memory_advice, open_device

Common = Mapping[str, np.ndarray]  # arrays that all calls of a map share


class Job(Protocol):
    """The constant part of the work, sent to every worker once."""

    def build(self, device: torch.device) -> Any:
        """Create the worker: an object whose methods take one call each."""


class Backend(Protocol):
    """A set of workers: loads a job once, then maps calls over them."""

    def load(self, job: Job) -> None:
        """Replace the job of every worker."""

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """The results of `worker.method(call)`, or `worker.method(call, common)`, in the order of the calls.

        Args:
            common: sent once for all calls; workers must not write to it.
            work: how much work each call is, in any unit: long ones start first; empty: unknown.
        """

    def close(self) -> None:
        """End the workers."""


def invoke(worker: Any, method: str, call: Any, common: Common | None) -> Any:
    """Run one call of a map on a worker."""
    function = getattr(worker, method)
    with memory_advice(method):
        return function(call) if common is None else function(call, common)


def build(job: Job, device: torch.device) -> Any:
    """Create the worker of a job on a device."""
    with memory_advice("loading"):
        return job.build(device)


class SerialBackend:
    """Runs every call in this process, on the CPU or, with a share of `gpus`, on the first GPU if there is one.

    While it is open, torch has `threads` threads; equal numbers give equal bits. `gpus`: see `open_device`. `stop` is
    set from outside.
    """

    def __init__(self, threads: int, gpus: float = 0.0, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._device = open_device(gpus)
        self._worker: Any = None

    def load(self, job: Job) -> None:
        """Create the worker."""
        self._worker = build(job, self._device)

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """Run the calls one after another, lazily; raise `Interrupted` if `stop` was set."""
        for call in calls:
            if self._stop.is_set():
                raise Interrupted("stopped by the user")
            yield invoke(self._worker, method, call, common)

    def close(self) -> None:
        """Restore the number of torch threads."""
        torch.set_num_threads(self._threads_before)


class OnDemand:
    """A backend that `open` returns, called at the first `load`: without work, no worker starts."""

    def __init__(self, open: Callable[[], Backend]) -> None:
        self._open = open
        self._backend: Backend | None = None

    def load(self, job: Job) -> None:
        """See `Backend.load`."""
        self._backend = self._backend or self._open()
        self._backend.load(job)

    def map(
        self, method: str, calls: Sequence[Any], common: Common | None = None, work: Sequence[int] = ()
    ) -> Iterator[Any]:
        """See `Backend.map`; a job must be loaded."""
        if self._backend is None:
            raise RuntimeError("no job is loaded")
        return self._backend.map(method, calls, common, work)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._backend is not None:
            self._backend.close()
