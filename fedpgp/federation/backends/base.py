"""The interface of a backend: loads a job once, then maps calls over workers. Results are equal for all backends."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

Common = Mapping[str, np.ndarray]
"""Arrays that all calls of a map share."""


class Job(Protocol):
    """The constant part of the work, sent to every worker once."""

    def build(self, device: torch.device) -> Any:
        """Create the worker: an object whose methods take one call each."""
        ...


class Backend(Protocol):
    """A set of workers."""

    def load(self, job: Job) -> None:
        """Replace the job of every worker."""
        ...

    def map(self, method: str, calls: Sequence[Any], common: Common | None = None) -> Iterator[Any]:
        """The results of `worker.method(call)`, or `worker.method(call, common)`, in the order of the calls.

        Args:
            common: argument of all calls, sent once; workers must not write to it.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...


def invoke(worker: Any, method: str, call: Any, common: Common | None) -> Any:
    """Run one call of a map on a worker."""
    function = getattr(worker, method)
    return function(call) if common is None else function(call, common)
