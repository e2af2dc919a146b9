"""What a backend offers to the server: load a job once, then map calls over workers. Results never depend on which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch


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

    def map(self, method: str, calls: Sequence[Any]) -> Iterator[Any]:
        """The results of `worker.method(call)`, in the order of the calls."""
        ...

    def close(self) -> None:
        """Free what the workers hold."""
        ...
