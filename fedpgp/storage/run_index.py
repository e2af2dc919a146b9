"""The folder `runs` of a storage root, on this machine and in remote storage behind a `pyarrow.fs` URI."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow import fs

from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.core.files import TEMPORARY, check_readable, locked, sync_folder
from fedpgp.storage.status_folder import new_draft

ATOMIC = ("s3", "gcs", "abfs", "mock")
"""File systems on which an object appears once it is complete; on others it is written under another name first."""


class ObjectStore:
    """A folder of objects in remote storage, never appended to; a failed operation raises `FedPGPError`."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._fs = filesystem
        self._path = path.rstrip("/")

    @classmethod
    def at(cls, uri: str) -> ObjectStore:
        """Open the folder of a URI; raise `RunError` if pyarrow does not support it."""
        try:
            return cls(*fs.FileSystem.from_uri(uri))
        except (ValueError, OSError, ImportError) as error:
            what = str(error).replace(uri, f"{uri.partition('://')[0]}://...")  # the rest may contain a password
            raise RunError(f"storage.uri: {what}; use a URI that pyarrow.fs knows, such as s3:// or file://") from None

    def __truediv__(self, name: str) -> ObjectStore:
        return ObjectStore(self._fs, f"{self._path}/{name}")

    def make(self) -> None:
        """Create the folder if it is missing, which also shows that it is writable."""
        with self._errors():
            self._fs.create_dir(self._path, recursive=True)

    def names(self) -> list[str]:
        """List the names directly inside; empty if the folder is missing."""
        with self._errors():
            found = self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
            return sorted(item.base_name for item in found)

    def put(self, name: str, content: bytes) -> None:
        """Write or replace one object."""
        path = f"{self._path}/{name}"
        parent, _, last = path.rpartition("/")
        atomic = self._fs.type_name.removeprefix("py::") in ATOMIC
        first = path if atomic else f"{parent}/{TEMPORARY}{last}"
        with self._errors():
            self._fs.create_dir(parent, recursive=True)
            with self._fs.open_output_stream(first) as stream:
                stream.write(content)
            if not atomic:
                self._fs.move(first, path)

    def delete(self, name: str) -> None:
        """Remove an object if it exists."""
        with self._errors():
            if self._fs.get_file_info(f"{self._path}/{name}").type != fs.FileType.NotFound:
                self._fs.delete_file(f"{self._path}/{name}")

    def fetch(self, folder: Path) -> None:
        """Copy everything below into an existing folder; raise `RunError` if an object's name leads out of it."""
        with self._errors():
            for item in self._fs.get_file_info(fs.FileSelector(self._path, recursive=True)):
                if ".." in PurePosixPath(item.path).parts:
                    raise RunError(f"storage.uri: object {item.path} leads out of its folder; remove it")
            fs.copy_files(
                self._path, str(folder), source_filesystem=self._fs, destination_filesystem=fs.LocalFileSystem()
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FedPGPError(f"storage.uri: {self._fs.type_name}, {self._path}: {error}") from None


class RunIndex:
    """Finds and names the runs of a storage root; with `uri`, their authoritative copies are in that object store."""

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.path = root.absolute() / "runs"
        self._remote = ObjectStore.at(uri) / "runs" if uri else None

    def remote(self, path: Path) -> ObjectStore | None:
        """Return the remote copy of the run in this folder."""
        return self._remote and self._remote / path.name

    def find(self, name: str | None = None, digest: str | None = None) -> list[Path]:
        """List the folders of all runs of this name and digest, of any if None; they may not be fetched yet."""
        return self._matching(self._remote.names() if self._remote else self._local_names(), name, digest)

    def place(self, draft: Path, name: str, digest: str) -> Path:
        """Rename a draft to the next free name of its digest, in one atomic step."""
        taken = [*self._local_names(), *(self._remote.names() if self._remote else ())]
        number = max(map(number_of, self._matching(taken, name, digest)), default=0) + 1
        while True:
            path = self.path / (f"{name}-{digest}" + (f".{number}" if number > 1 else ""))
            try:
                draft.rename(path)
            except OSError:
                if not path.exists():
                    shutil.rmtree(draft)
                    raise
                number += 1
            else:
                sync_folder(self.path)
                return path

    def fetch(self, path: Path) -> None:
        """Replace a run folder by its remote copy, unless a process writes to it."""
        remote = self.remote(path)
        if remote is None:
            return
        draft = new_draft(self.path)
        try:
            remote.fetch(draft)
            if path.exists():
                with locked(path / ".lock", wait=False):
                    shutil.rmtree(path)
            draft.rename(path)
            sync_folder(self.path)
        except BlockingIOError:  # the lock refuses other writers later
            shutil.rmtree(draft)

    def _local_names(self) -> list[str]:
        check_readable(self.path)
        return os.listdir(self.path) if self.path.is_dir() else []

    def _matching(self, names: list[str], name: str | None, digest: str | None) -> list[Path]:
        """The folders of a name and a digest, with or without a number."""
        anything = rf"(?!{re.escape(TEMPORARY)}).+"
        pattern = re.compile(rf"{re.escape(name) if name else anything}-{digest or '[0-9a-f]{12}'}(\.\d+)?")
        return [self.path / found for found in names if pattern.fullmatch(found)]


def digest_of(path: Path) -> str:
    """The digest in a run folder's name."""
    return path.name.rpartition("-")[2].partition(".")[0]


def number_of(path: Path) -> int:
    """The number at the end of a run folder's name; 1 without one."""
    match = re.search(r"-[^-.]+\.(\d+)$", path.name)
    return int(match[1]) if match else 1
