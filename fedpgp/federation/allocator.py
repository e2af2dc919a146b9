"""Memory that is freed stays with the process, so that large tensors do not fault in new pages again and again."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell the C library to reuse what was freed rather than return it; whether it is one that can be told (glibc).

    By default glibc maps a block of 32 MB or more afresh each time and gives it back, and every page of it is cleared
    and faulted in at first touch: a quarter of the time of an image tower on a CPU. The price is that the process stays
    as large as it once was. For the whole process, and for good.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))
