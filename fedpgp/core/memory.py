"""The memory of this machine, within the limit of a container."""

import os

from fedpgp.core import provenance


def total() -> int:
    """Bytes of all memory."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def free() -> int | None:
    """Bytes available to new processes; None: unknown on this system."""
    available = provenance.named("/proc/meminfo", "MemAvailable")
    return None if available is None else min([int(available.removesuffix(" kB")) * 1024, *_limits()])


def _limits() -> list[int]:
    return [int(line) for line in provenance.lines("/sys/fs/cgroup/memory.max") if line.isdigit()]
