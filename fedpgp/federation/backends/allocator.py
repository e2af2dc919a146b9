"""What the C library does with freed memory: kept for large tensors, and not spread over the heaps of many threads."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

HEAPS = 2
"""For all threads of a process that drives runs: they wait for Ray and for files, and hardly for each other."""


def keep_freed_memory() -> bool:
    """Tell the C library to reuse what was freed rather than return it; whether it is one that can be told (glibc).

    By default glibc maps a block of 32 MB or more afresh each time and gives it back, and every page of it is cleared
    and faulted in at first touch: a quarter of the time of an image tower on a CPU. The price is that the process stays
    as large as it once was. For the whole process, and for good.
    """
    return _told(M_MMAP_MAX, 0) and _told(M_TRIM_THRESHOLD, -1)


def share_heaps() -> bool:
    """Tell the C library to make at most `HEAPS` heaps for all threads; whether it is one that can be told (glibc).

    By default glibc makes up to 8 heaps for each core, and each of them keeps what was freed in it: a process that
    drives sweep after sweep, each with threads of its own, grows with every one until all heaps have been used. For the
    whole process, and for good; heaps that are there already stay.
    """
    return _told(M_ARENA_MAX, HEAPS)


def _told(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, value))
