"""Claims in an object store: who writes to a run or a sweep there, so that two machines do not do so at once."""

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedpgp.core.errors import RunError, StorageError
from fedpgp.storage.object_store import Object, ObjectStore

log = logging.getLogger(__name__)

FOLDER = ".claims"
"""The folder of the claims in that of a run or a sweep."""
BEAT_SECONDS = 10.0
"""Interval at which a writer renews its claim."""
STALE_SECONDS = 40.0
"""Age at which a claim no longer counts: its process was killed, or does not reach the store."""
POLL_SECONDS = 2.0
"""Interval at which a process looks whether the claim of another one is renewed."""


def owner_of(root: Path) -> str:
    """The name of the claims of a storage root: a process takes over what a killed one with the same root had claimed.

    Of two processes with the same root at once, the lock in each folder refuses one. A copy of the root, on another
    machine or file system, has another name.
    """
    about = root.stat()
    place = f"{root}:{about.st_dev}:{about.st_ino}"
    return f"{socket.gethostname()}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def any_alive(claims: Iterable[Object], now_ns: float) -> bool:
    """Whether one of these claims still counts at a time of the store."""
    return any(one.time_ns is None or now_ns - one.time_ns < STALE_SECONDS * 1e9 for one in claims)


@contextmanager
def claimed(folder: ObjectStore, owner: str, what: str) -> Iterator["Claim"]:
    """Claim the folder of a run or a sweep (`what`, for messages) and renew the claim from a thread during the block.

    Raises `RunError` if another owner's claim is being renewed. A claim that is not is waited for until it is stale.
    """
    claim = Claim(folder / FOLDER, owner)
    claim.acquire(what)
    thread = threading.Thread(target=claim.keep, name="claim", daemon=True)
    thread.start()
    try:
        yield claim
    finally:
        claim.ended.set()
        thread.join(BEAT_SECONDS)
        claim.release()


class Claim:
    """An object that this process rewrites as long as it writes to the folder around it.

    A claim is written before those of others are listed: of two processes that begin at once, at least one sees the
    other. Ages are differences of times of the store, so the clocks of machines do not matter.
    """

    def __init__(self, store: ObjectStore, owner: str) -> None:
        self._store, self._name = store, f"{owner}.json"
        self._mutex, self.ended = threading.Lock(), threading.Event()
        self._written = 0.0
        self._lost: str | None = None

    def acquire(self, what: str) -> None:
        """Write the claim, return once no other one counts, and remove those that no longer do."""
        seen: dict[str, Object] = {}
        while others := self._living(found := self._write_and_list(self._store)):
            self.release()  # a process that waits does not keep others waiting
            for name, (item, age) in others.items():
                if seen.get(name, item) != item or age is None:
                    who = self._holder(name)
                    raise RunError(f"{self._store}: {what} is being run by {who}; wait for it, or stop it there")
                if name not in seen:
                    log.warning(
                        "%s was run by %s %d s ago: waiting up to %d s to see whether it still is",
                        what, self._holder(name), max(age, 0), STALE_SECONDS - max(age, 0),
                    )  # fmt: skip
                seen[name] = item
            time.sleep(POLL_SECONDS)
        for name in found:
            with suppress(StorageError):
                self._store.once().delete(name)

    def keep(self) -> None:
        """Renew the claim until it has `ended`; a failure is seen by the next `check`."""
        while not self.ended.wait(BEAT_SECONDS):
            with suppress(StorageError):
                self._renew(self._store.once())

    def check(self) -> None:
        """Raise `StorageError` if another process took over while this one did not renew its claim for too long."""
        if time.time() - self._written > STALE_SECONDS:
            self._renew(self._store)
        if self._lost:
            raise StorageError(f"{self._store}: taken over by {self._lost}, because this process was asleep or offline")

    def release(self) -> None:
        """Remove the claim, if the store can be reached."""
        with suppress(StorageError):
            self._store.once().delete(self._name)

    def _renew(self, store: ObjectStore) -> None:
        with self._mutex:
            if time.time() - self._written <= STALE_SECONDS:
                self._write(store)
            elif others := self._living(self._write_and_list(store)):
                self._lost = self._holder(next(iter(others)))

    def _write(self, store: ObjectStore) -> None:
        now = time.time()
        content = {"host": socket.gethostname(), "pid": os.getpid()}
        store.put(self._name, json.dumps(content).encode())
        self._written = now

    def _write_and_list(self, store: ObjectStore) -> dict[str, tuple[Object, float | None]]:
        """Write the claim; return those of others, with their ages in seconds (None: unknown)."""
        self._write(store)
        found = store.objects()
        own = found.pop(self._name, None)
        now = own.time_ns if own else None
        return {
            name: (item, None if now is None or item.time_ns is None else (now - item.time_ns) / 1e9)
            for name, item in found.items()
        }

    @staticmethod
    def _living(claims: dict[str, tuple[Object, float | None]]) -> dict[str, tuple[Object, float | None]]:
        """Those that count."""
        return {name: (item, age) for name, (item, age) in claims.items() if (age or 0.0) < STALE_SECONDS}

    def _holder(self, name: str) -> str:
        """The process that wrote a claim, for messages."""
        try:
            content = json.loads(self._store.read(name) or b"")
            return f"pid {content['pid']} on {content['host']}"
        except (ValueError, KeyError, TypeError):
            return f"another process ({name})"
