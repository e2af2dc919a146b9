"""A place beyond this machine for whole objects, behind a `pyarrow.fs` URI: put, listed, fetched, taken away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pyarrow import fs

from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.core.files import TEMPORARY

SHOWN_WHEN_WHOLE = ("s3", "gcs", "abfs", "mock")
"""File systems on which an object appears once all of it is there; on the others it gets its name afterwards."""


LOCAL = fs.LocalFileSystem()


class ObjectStore:
    """A folder there. Nothing is ever appended to.

    Raises:
        FedPGPError: whatever goes wrong there; it names the folder.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._fs = filesystem
        self._path = path.rstrip("/")

    @classmethod
    def at(cls, uri: str) -> ObjectStore:
        """The folder behind a URI.

        Raises:
            RunError: pyarrow knows no such file system.
        """
        try:
            return cls(*fs.FileSystem.from_uri(uri))
        except (ValueError, OSError, ImportError) as error:
            what = str(error).replace(uri, f"{uri.partition('://')[0]}://...")  # the rest may hold a password
            raise RunError(f"storage.uri: {what}; give a URI that pyarrow.fs knows, such as s3:// or file://") from None

    def __truediv__(self, name: str) -> ObjectStore:
        return ObjectStore(self._fs, f"{self._path}/{name}")

    def make(self) -> None:
        """Create the folder where it is missing, which shows that one can write there."""
        with self._told():
            self._fs.create_dir(self._path, recursive=True)

    def names(self) -> list[str]:
        """What is directly inside; nothing if there is no such folder."""
        with self._told():
            found = self._fs.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
            return sorted(item.base_name for item in found)

    def put(self, name: str, content: bytes) -> None:
        """Write one whole object, or replace it."""
        path = f"{self._path}/{name}"
        whole = self._fs.type_name.removeprefix("py::") in SHOWN_WHEN_WHOLE
        parent, _, last = path.rpartition("/")
        first = path if whole else f"{parent}/{TEMPORARY}{last}"
        with self._told():
            self._fs.create_dir(parent, recursive=True)
            with self._fs.open_output_stream(first) as stream:
                stream.write(content)
            if not whole:
                self._fs.move(first, path)

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._told():
            if self._fs.get_file_info(f"{self._path}/{name}").type != fs.FileType.NotFound:
                self._fs.delete_file(f"{self._path}/{name}")

    def fetch(self, folder: Path) -> None:
        """Copy everything below into an existing folder.

        Raises:
            RunError: an object's name leads out of that folder.
        """
        with self._told():
            for item in self._fs.get_file_info(fs.FileSelector(self._path, recursive=True)):
                if ".." in PurePosixPath(item.path).parts:
                    raise RunError(f"storage.uri: {item.path} there leads out of its folder; remove it")
            fs.copy_files(self._path, str(folder), source_filesystem=self._fs, destination_filesystem=LOCAL)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FedPGPError(f"storage.uri: {self._fs.type_name}, {self._path}: {error}") from None
