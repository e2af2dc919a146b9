"""Resources of workers: how they fit a cluster, and reuse of freed memory."""

import ctypes
from collections.abc import Mapping, Sequence

EPSILON = 1e-9
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
HEAPS = 2  # for all threads of a process that drives runs, which wait for Ray and for files most of the time


def capacity(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Count the actors of that size that fit one node.

    A fraction of a GPU must be on one device: 2 GPUs hold 6 x 0.3, not 6.67. Above 1, only whole GPUs count.
    """
    fits = [int(node.get("CPU", 0) / cpus + EPSILON)]
    if gpus > 0:
        devices = int(node.get("GPU", 0))
        fits.append(devices * int(1 / gpus + EPSILON) if gpus <= 1 else int(devices / gpus + EPSILON))
    return min(fits)


def shortfall(actors: int, cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Describe in one line what is missing for `actors` of that size; None: they fit."""
    fitting = sum(capacity(node, cpus, gpus) for node in nodes)
    if fitting >= actors:
        return None
    have = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    needs = f"{actors} actors x ({cpus:g} CPU, {gpus:g} GPU) need {actors * cpus:g} CPU and {actors * gpus:g} GPU"
    has = f"the cluster has {have['CPU']:g} CPU and {have['GPU']:g} GPU on {len(nodes)} node(s)"
    short = [kind for kind, each in (("CPU", cpus), ("GPU", gpus)) if have[kind] + EPSILON < actors * each]
    reason = f"short of {' and '.join(short)}" if short else "the fractions do not pack into its nodes and devices"
    return f"{needs}; {has}: {reason}, {fitting} fit; lower resources.actors, cpus_per_actor or gpus_per_actor"


def keep_freed_memory() -> bool:
    """Make malloc reuse freed memory instead of returning it to the system. Returns whether it can (glibc only).

    By default glibc maps every block of 32 MB or more separately and unmaps it when freed, so each page is cleared and
    faulted in again: a quarter of the time of an image tower on a CPU. The price is that the process keeps its largest
    size. Affects the whole process permanently.
    """
    return _mallopt(M_MMAP_MAX, 0) and _mallopt(M_TRIM_THRESHOLD, -1)


def share_heaps() -> bool:
    """Limit malloc to `HEAPS` heaps for all threads. Returns whether it can (glibc only).

    By default glibc creates up to 8 heaps per core, and each keeps the memory freed in it, so a process that drives
    sweep after sweep with new threads keeps growing. Affects the whole process permanently; existing heaps stay.
    """
    return _mallopt(M_ARENA_MAX, HEAPS)


def _mallopt(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, value))
