"""Durable file writes, file locks that survive a killed process, and what this user may not read or write."""

import errno
import fcntl
import os
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from fedpgp.core.errors import AccessError

TEMPORARY = ".tmp-"
"""Prefix of a file's name while it is being written."""
ATTEMPTS, ATTEMPT_SECONDS = 10, 0.02
"""Attempts to take a lock without waiting for its holder, and the seconds between them: readers hold it briefly."""


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the `with` block, or is removed if the block fails.

    It is synced before the rename, and its folder after it: after a kill `path` is the old file or the new one.
    Raises `AccessError` if this user may not write there.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")  # hosts share a folder
    with access_errors(path):
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


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, as the umask says; raise `AccessError` if this user may not."""
    with access_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def is_full(error: OSError) -> bool:
    """Return whether a write failed because the disk or the quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_the_way(folder: Path) -> Path | None:
    """Return the path that prevents writing into `folder`, itself or its nearest existing parent; None: writable."""
    nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


def denied(path: Path, writing: bool = False) -> str | None:
    """Say what keeps this user from reading `path`, or also from writing to it, and how to allow it; None: nothing.

    A missing path counts as readable, and as writable if its nearest existing parent is.
    """
    path = Path(os.path.realpath(path))
    for place in (*reversed(path.parents), path):
        if not place.exists():
            return _lacking(place.parent, os.W_OK | os.X_OK) if writing and place.parent.is_dir() else None
        if place != path and place.is_dir() and (found := _lacking(place, os.X_OK)):
            return found
    search = os.X_OK if path.is_dir() else 0
    return _lacking(path, os.R_OK | search | (os.W_OK if writing else 0))


def check_readable(path: Path) -> None:
    """Raise `AccessError` if `path` exists but this user may not read it: `glob` and `exists` do not tell."""
    if (found := denied(path)) is not None:
        raise AccessError(found)


def check_writable(path: Path) -> None:
    """Raise `AccessError` if this user may not read and write `path`, or create it."""
    if (found := denied(path, writing=True)) is not None:
        raise AccessError(found)


@contextmanager
def access_errors(path: Path) -> Iterator[None]:
    """Turn a `PermissionError`, about `path` unless it names another file, into an `AccessError`."""
    try:
        yield
    except PermissionError as error:
        raise AccessError(explain(error, path)) from None


def explain(error: PermissionError, path: Path) -> str:
    """Say what was not permitted, to whom, and how to allow it."""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    return denied(place) or denied(place, writing=True) or f"{place}: {error.strerror}"


def folders_with(file: str, parent: Path) -> list[Path]:
    """List the folders in `parent` with this file, by name; also those this user may not enter: reading them says so.

    Raises `AccessError` if `parent` may not be read; empty if it is missing.
    """
    check_readable(parent)
    return [folder for folder in sorted(parent.iterdir()) if _may_have(folder / file)] if parent.is_dir() else []


def share_with_group(path: Path) -> None:
    """Let the group write to an own file or folder if it may write to the folder around it, whatever the umask."""
    own, parent = path.stat(), path.parent.stat()
    bits = stat.S_IRGRP | stat.S_IWGRP | (stat.S_IXGRP if stat.S_ISDIR(own.st_mode) else 0)
    shared = parent.st_mode & stat.S_IWGRP and parent.st_gid == own.st_gid
    if shared and own.st_uid == os.geteuid() and own.st_mode & bits != bits:
        path.chmod(stat.S_IMODE(own.st_mode) | bits)


def sync_folder(folder: Path) -> None:
    """Sync the file names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which is created if missing, never removed, and has the holder's pid and host.

    If another process holds it and `wait` is false, raise `BlockingIOError`. A lock that another user created is held
    without the pid if it is only readable. Raises `AccessError` if it is not even that.
    """
    with _open_lock(path) as file:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            _lock_now(file)
        if file.writable():
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


@contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold a shared lock on an existing `path`; raise `BlockingIOError` if another process holds it exclusively."""
    with access_errors(path):
        file = path.open("rb")
    with file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def _open_lock(path: Path) -> IO[str]:
    with access_errors(path):
        try:
            file = path.open("a+", encoding="utf-8")
        except PermissionError:
            if not _permitted(path, os.R_OK):
                raise
            return path.open(encoding="utf-8")
    share_with_group(path)
    return file


def _lock_now(file: IO[str]) -> None:
    for _ in range(ATTEMPTS - 1):
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(ATTEMPT_SECONDS)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _permitted(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _lacking(path: Path, wanted: int) -> str | None:
    """The message of `denied` for one path; None: it has all the bits of `wanted`."""
    missing = [(bit, letter) for bit, letter in ((os.R_OK, "r"), (os.W_OK, "w"), (os.X_OK, "x")) if wanted & bit]
    letters = "".join(letter for bit, letter in missing if not _permitted(path, bit))
    if not letters:
        return None
    if os.statvfs(path).f_flag & os.ST_RDONLY and letters == "w":
        return f"{path} is on a read-only file system; give another folder"
    verbs = " or ".join(verb for verb, own in (("read", "rx"), ("written", "w")) if set(own) & set(letters))
    about, groups = path.stat(), {os.getegid(), *os.getgroups()}
    who = "u" if about.st_uid == os.geteuid() else "g" if about.st_gid in groups else "o"
    allow = "" if who == "u" else f"its owner (uid {about.st_uid}) can allow it: "
    return f"{path} may not be {verbs} by you (uid {os.geteuid()}); {allow}chmod {who}+{letters} {path}"


def _may_have(path: Path) -> bool:
    """Whether a file exists, or may exist in a folder that this user may not enter."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return True
