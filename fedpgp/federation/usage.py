"""Measure processor time and memory that processes use while they work. No result depends on it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from fedpgp.core.provenance import lines
from fedpgp.core.text import MIB

CPU, MEMORY, GPU = "cpu_utilization_percentage", "memory_usage_megabytes", "gpu_memory_usage_megabytes"
"""Names as MLflow's own monitor of a machine has them. 100 percent are one core."""


@dataclass
class Usage:
    """What one process used while it did one piece of work."""

    process: str = field(default_factory=lambda: f"{socket.gethostname()} {os.getpid()}")
    seconds: float = 0.0  # wall clock
    cpu_seconds: float = 0.0  # of all threads of the process
    memory: int | None = None  # bytes in memory at the end; None: unknown on this system
    gpu_memory: int | None = None  # most bytes of tensors on the GPU; None: it uses none


@contextmanager
def measured() -> Iterator[Usage]:
    """Measure this process while the context is open; the result is complete afterwards."""
    usage, start, cpu = Usage(), time.perf_counter(), time.process_time()
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    yield usage
    usage.seconds, usage.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    usage.memory = _resident()
    usage.gpu_memory = torch.cuda.max_memory_allocated() if on_gpu else None


def of_round(driver: Usage, work: Sequence[Usage]) -> dict[str, float]:
    """Usage of a round: `driver_...` of this process, `workers_...` of others.

    `cpu_utilization_percentage` of workers is their mean while they work, and memory the sum over them. With the serial
    backend the driver does all the work and there are no workers.
    """
    others = [one for one in work if one.process != driver.process]
    own = [one for one in work if one.process == driver.process]
    driver.gpu_memory = max((one.gpu_memory for one in own if one.gpu_memory is not None), default=driver.gpu_memory)
    return _named("driver", [driver]) | _named("workers", others)


def _named(who: str, work: Sequence[Usage]) -> dict[str, float]:
    found: dict[str, float] = {}
    if seconds := sum(one.seconds for one in work):
        found[f"{who}_{CPU}"] = 100 * sum(one.cpu_seconds for one in work) / seconds
    for name, sizes in (
        (MEMORY, [(one.process, one.memory) for one in work]),
        (GPU, [(one.process, one.gpu_memory) for one in work]),
    ):
        largest: dict[str, int] = {}
        for process, size in sizes:
            if size is not None:
                largest[process] = max(size, largest.get(process, 0))
        if largest:
            found[f"{who}_{name}"] = sum(largest.values()) / MIB
    return found


def _resident() -> int | None:
    """Bytes of this process in memory; None: the system has no `/proc`."""
    found = lines("/proc/self/statm")
    return int(found[0].split()[1]) * os.sysconf("SC_PAGE_SIZE") if found else None
