"""The serial backend: one worker in this process, for debugging and as the reference of other backends."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedpgp.core.errors import Interrupted
from fedpgp.federation.backends.base import Common, Job, invoke


class SerialBackend:
    """Runs every call in this process, on the CPU or the first GPU.

    Args:
        threads: torch threads while it is open; equal threads give equal bits.
        gpu: whether to use a GPU, if available.
        stop: set from outside to interrupt it.
    """

    def __init__(self, threads: int, gpu: bool = False, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
        self._worker: Any = None

    def load(self, job: Job) -> None:
        """Create the worker."""
        self._worker = job.build(self._device)

    def map(self, method: str, calls: Sequence[Any], common: Common | None = None) -> Iterator[Any]:
        """Run the calls one after another, lazily; raise `Interrupted` if `stop` was set."""
        for call in calls:
            if self._stop.is_set():
                raise Interrupted("asked to stop")
            yield invoke(self._worker, method, call, common)

    def close(self) -> None:
        """Restore the number of torch threads."""
        torch.set_num_threads(self._threads_before)
