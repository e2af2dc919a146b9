"""What a backend offers to the server: load a job once, then map calls over workers. Results never depend on which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

Common = Mapping[str, np.ndarray]
"""Arrays that all calls of a map need."""


class Job(Protocol):
    """Something that workers hold; sent once, then called many times."""

    def build(self, device: torch.device) -> Any:
        """The worker: an object whose methods take one call each."""
        ...


class Backend(Protocol):
    """Workers, wherever they run."""

    def load(self, job: Job) -> None:
        """Give every worker this job, in place of the one before."""
        ...

    def map(self, method: str, calls: Sequence[Any], common: Common | None = None) -> Iterator[Any]:
        """The results of `worker.method(call)`, or `worker.method(call, common)`, in the order of the calls.

        Args:
            common: for all calls, and not sent with each of them; workers must not write to it.
        """
        ...

    def close(self) -> None:
        """Free what the workers hold."""
        ...


def invoke(worker: Any, method: str, call: Any, common: Common | None) -> Any:
    """One call of a map, where the worker is."""
    function = getattr(worker, method)
    return function(call) if common is None else function(call, common)
