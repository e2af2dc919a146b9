"""Read processes and their resources from Linux's /proc."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedpgp.core.errors import FedPGPError


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descendants(pid: int) -> dict[int, str]:
    """All processes below `pid`, with their command lines."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended in the meantime
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    below: dict[int, str] = {}
    generation = {pid}
    while generation := {child for child, parent in parents.items() if parent in generation}:
        below |= {child: _command_line(child) for child in generation}
    return below


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def usage(pids: Sequence[int]) -> dict[str, float]:
    """Resources that these processes hold together; shared memory counts once.

    Mapped files do not count as memory. The kernel drops their pages at will and divides them among all processes that
    map them, so they would seem to grow when another process ends.

    Raises:
        FedPGPError: this kernel does not report mapped files separately.
    """
    found = {"memory_mb": 0.0, "handles": 0.0, "threads": 0.0, "processes": 0.0}
    for pid in pids:
        folder = Path("/proc", str(pid))
        try:
            lines = (folder / "smaps_rollup").read_text().splitlines()
            own = [int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
            handles, threads = len(os.listdir(folder / "fd")), len(os.listdir(folder / "task"))
        except OSError:
            continue
        if not own:
            raise FedPGPError(f"{folder}/smaps_rollup: no Pss_Anon; Linux 5.9 or later is required")
        found["memory_mb"] += sum(own) / 1024
        found["handles"] += handles
        found["threads"] += threads
        found["processes"] += 1
    return found
