"""Whole objects in remote storage, behind a `pyarrow.fs` URI: write, list, fetch, delete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow import fs

from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.core.files import TEMPORARY

ATOMIC = ("s3", "gcs", "abfs", "mock")
"""File systems on which an object appears once it is complete; on others it is written under another name first."""
LOCAL = fs.LocalFileSystem()


class ObjectStore:
    """A folder of objects; nothing is ever appended to.

    Raises:
        FedPGPError: an operation failed; names the folder.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._fs = filesystem
        self._path = path.rstrip("/")

    @classmethod
    def at(cls, uri: str) -> ObjectStore:
        """Open the folder of a URI.

        Raises:
            RunError: pyarrow does not support the URI.
        """
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
        """Copy everything below into an existing folder.

        Raises:
            RunError: the name of an object leads out of that folder.
        """
        with self._errors():
            for item in self._fs.get_file_info(fs.FileSelector(self._path, recursive=True)):
                if ".." in PurePosixPath(item.path).parts:
                    raise RunError(f"storage.uri: object {item.path} leads out of its folder; remove it")
            fs.copy_files(self._path, str(folder), source_filesystem=self._fs, destination_filesystem=LOCAL)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FedPGPError(f"storage.uri: {self._fs.type_name}, {self._path}: {error}") from None
