"""A folder of objects in remote storage behind a `pyarrow.fs` URI: put, delete, list, and copy to a local folder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from pyarrow import fs

from fedpgp.core.errors import RunError, StorageError
from fedpgp.core.files import TEMPORARY, is_full, make_folder
from fedpgp.core.remote_errors import RemoteFailure, remote_failure
from fedpgp.core.text import one_line

log = logging.getLogger(__name__)
T = TypeVar("T")

FLAT = ("s3", "gcs", "abfs")
"""File systems without folders."""
ATOMIC = (*FLAT, "mock")
"""File systems on which an object appears once it is complete; on others it is written under another name first."""
WAITS = (1, 2, 4, 8, 16, 32)
"""Seconds before each further attempt of an operation that failed."""
DOWNLOADS = 32
"""Objects that are copied at a time."""
LAST = "status.json"
"""The object of a run or a sweep that is copied last: it changes when a writer begins or ends."""


class Object(NamedTuple):
    """An object in a listing."""

    size: int
    time_ns: int | None
    """when it was written, by the clock of the store; None: unknown"""


class ObjectStore:
    """A folder of objects in remote storage, never appended to.

    An operation that fails is tried again for about a minute, unless that does not help; then it raises `StorageError`.
    After that, each further operation is tried once until one succeeds.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._fs = filesystem
        self._path = path.rstrip("/")
        self._patient, self._failed = True, False

    @classmethod
    def at(cls, uri: str) -> ObjectStore:
        """Open the folder of a URI; raise `RunError` if pyarrow does not support it, or finds no such bucket."""
        shown = f"{uri.partition('://')[0]}://..."  # the rest may contain a password
        try:
            return cls(*fs.FileSystem.from_uri(_in_one_request(uri)))
        except (ValueError, ImportError) as error:
            what = str(error).replace(uri, shown)
            raise RunError(f"{what}; use a URI that pyarrow.fs knows, such as s3:// or file://") from None
        except OSError as error:
            raise RunError(f"{shown}: {_explain(error, uri.partition('://')[0]).what.replace(uri, shown)}") from None

    def __truediv__(self, name: str) -> ObjectStore:
        return ObjectStore(self._fs, f"{self._path}/{name}")

    def __str__(self) -> str:
        return f"{'file' if self._kind == 'local' else self._kind}://{self._path}"

    def once(self) -> ObjectStore:
        """The same folder, without further attempts."""
        found = ObjectStore(self._fs, self._path)
        found._patient = False
        return found

    def make(self) -> None:
        """Create the folder if it is missing, which also shows that it is writable."""
        self._attempt(lambda: self._fs.create_dir(self._path, recursive=True))

    def names(self) -> list[str]:
        """List the names directly inside; empty if the folder is missing."""
        selector = fs.FileSelector(self._path, allow_not_found=True)
        return sorted(item.base_name for item in self._attempt(lambda: self._fs.get_file_info(selector)))

    def objects(self) -> dict[str, Object]:
        """List all objects below, by their name; empty if the folder is missing.

        Raises `RunError` if a name leads out of the folder.
        """
        selector = fs.FileSelector(self._path, allow_not_found=True, recursive=True)
        found = {}
        for item in self._attempt(lambda: self._fs.get_file_info(selector)):
            if ".." in PurePosixPath(item.path).parts:
                raise RunError(f"{self}: object {item.path} leads out of its folder; remove it")
            if item.type == fs.FileType.File:
                name = item.path.removeprefix(self._path).lstrip("/")
                found[name] = Object(item.size, item.mtime_ns)
        return found

    def read(self, name: str) -> bytes | None:
        """Read one object; None: it is missing."""

        def read() -> bytes | None:
            try:
                with self._fs.open_input_stream(f"{self._path}/{name}") as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._attempt(read)

    def put(self, name: str, content: bytes) -> None:
        """Write or replace one object."""
        path = f"{self._path}/{name}"
        parent, _, last = path.rpartition("/")
        first = path if self._kind in ATOMIC else f"{parent}/{TEMPORARY}{last}"

        def write() -> None:
            if self._kind not in FLAT:
                self._fs.create_dir(parent, recursive=True)
            with self._fs.open_output_stream(first) as stream:
                stream.write(content)
            if first != path:
                self._fs.move(first, path)

        self._attempt(write)

    def delete(self, name: str) -> None:
        """Remove an object if it exists."""

        def remove() -> None:
            if self._fs.get_file_info(f"{self._path}/{name}").type != fs.FileType.NotFound:
                self._fs.delete_file(f"{self._path}/{name}")

        self._attempt(remove)

    def fetch(self, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Object]:
        """Copy the objects below whose names are `wanted` into an existing folder, and return all that are below.

        Files of the same size and time are kept, and wanted files that are not in the store are removed. Names with a
        part that begins with a dot are never copied or removed. Each `status.json` is copied last.
        """
        found = self.objects()
        here = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
        for name in here.keys() - found.keys():
            if wanted(name) and not _is_hidden(name):
                (folder / name).unlink(missing_ok=True)
        missing = [
            name
            for name, item in found.items()
            if wanted(name)
            and not _is_hidden(name)
            and (name not in here or item != Object(here[name].st_size, here[name].st_mtime_ns))
        ]
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            for last in (False, True):
                names = [name for name in missing if (PurePosixPath(name).name == LAST) == last]
                list(pool.map(lambda name: self._download(name, folder / name, found[name]), names))
        return found

    def _download(self, name: str, path: Path, item: Object) -> None:
        content = self.read(name)
        if content is None:  # removed since it was listed
            return
        make_folder(path.parent)
        temporary = path.with_name(f"{TEMPORARY}{path.name}")
        temporary.write_bytes(content)
        if item.time_ns is not None:
            os.utime(temporary, ns=(item.time_ns, item.time_ns))
        temporary.replace(path)

    @property
    def _kind(self) -> str:
        return str(self._fs.type_name.removeprefix("py::"))

    def _attempt(self, action: Callable[[], T]) -> T:
        """Do something until it succeeds, or another attempt would not help."""
        waits = list(WAITS) if self._patient and not self._failed else []
        first = True
        while True:
            try:
                result = action()
            except OSError as error:
                what, lasting = _explain(error, self._kind)
                if lasting or not waits:
                    self._failed = True
                    raise StorageError(f"{self}: {what}", lasting) from None
                if first:
                    log.warning("%s: %s; trying again for %d seconds", self, what, sum(waits))
                first = False
                time.sleep(waits.pop(0))
            else:
                self._failed = False
                return result


@contextmanager
def before_work(setting: str = "") -> Iterator[None]:
    """Name the setting in errors of an object store, and make those that last `RunError`: invalid input."""
    try:
        yield
    except (StorageError, RunError) as error:
        if isinstance(error, StorageError) and not error.lasting:
            raise StorageError(setting + str(error)) from None
        raise RunError(setting + str(error)) from None


def _in_one_request(uri: str) -> str:
    """Add to a URI of S3 that an object is written by one request, not as one of several parts."""
    if not uri.startswith("s3://") or "allow_delayed_open=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


def _explain(error: OSError, kind: str) -> RemoteFailure:
    """What a failure means, and whether it lasts."""
    lasting = is_full(error) or isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
    return remote_failure(error, kind) or RemoteFailure(one_line(error), lasting)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)
