"""Durable file writes and file locks that survive a killed process."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

TEMPORARY = ".tmp-"
"""Prefix of a file's name while it is being written."""
ATTEMPTS, ATTEMPT_SECONDS = 10, 0.02
"""Attempts to take a lock without waiting for its holder, and the seconds between them: readers hold it briefly."""


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the `with` block, or is removed if the block fails.

    It is synced before the rename, and its folder after it: after a kill `path` is the old file or the new one.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:  # a failed write must not fill a full disk further
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Write a whole file, see `durable_file`."""
    with durable_file(path) as file:
        file.write(content)


def is_full(error: OSError) -> bool:
    """Return whether a write failed because the disk or the quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_the_way(folder: Path) -> Path | None:
    """Return the path that prevents writing into `folder`, itself or its nearest existing parent; None: writable."""
    nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


def sync_folder(folder: Path) -> None:
    """Sync the file names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which is created if missing, never removed, and contains the holder's pid.

    If another process holds it and `wait` is false, raise `BlockingIOError`.
    """
    with path.open("a+", encoding="utf-8") as file:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _lock_now(file)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold a shared lock on an existing `path`; raise `BlockingIOError` if another process holds it exclusively."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _lock_now(file: IO[str]) -> None:
    for _ in range(ATTEMPTS - 1):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(ATTEMPT_SECONDS)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
