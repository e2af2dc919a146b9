"""Files that are whole or absent, whatever is killed, and the locks beside them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp-"
"""Prefix of the name that a file has while it is being written."""
LOOKS, LOOK_SECONDS = 10, 0.02
"""How often, and how far apart, a lock is asked for that is not waited for: who looks at it has it for a moment."""


def write_durably(path: Path, content: bytes) -> None:
    """Temporary name, fsync, rename, fsync of the folder: after a kill `path` is the old file or the new one."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk is not filled further by what nobody will read
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def is_full(error: OSError) -> bool:
    """Whether something could not be written as there is no room for it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_the_way(folder: Path) -> Path | None:
    """What keeps files from being put into a folder, itself or one that it is to be made in; None: nothing."""
    nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if missing, never removed), which names its holder's process.

    Raises:
        BlockingIOError: someone else holds it and `wait` is false.
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
    """Keep everyone from locking `path`, which must be there, for a moment; others may look too. Nothing is written.

    Raises:
        BlockingIOError: someone holds it.
    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _lock_now(file: IO[str]) -> None:
    for _ in range(LOOKS - 1):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOOK_SECONDS)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
