"""The serial backend: one worker in this process, for debugging and as the oracle of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedpgp.federation.backend import Job


class SerialBackend:
    """Runs every call here, on the CPU or the first GPU.

    Args:
        threads: torch threads while it is open; equal threads give equal bits.
        gpu: whether to use a GPU, if there is one.
    """

    def __init__(self, threads: int, gpu: bool = False) -> None:
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
        self._worker: Any = None

    def load(self, job: Job) -> None:
        """Build the worker here."""
        self._worker = job.build(self._device)

    def map(self, method: str, calls: Sequence[Any]) -> Iterator[Any]:
        """One after another, lazily."""
        return map(getattr(self._worker, method), calls)

    def close(self) -> None:
        """Give the threads back."""
        torch.set_num_threads(self._threads_before)
