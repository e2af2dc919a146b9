"""Files under a root: a local folder or a `pyarrow.fs` URI."""

from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import one_line, redacted
from fedpgp.data.sources.base import existing_root, inside
from fedpgp.data.sources.files import size_and_time


class Place:
    """The folder `data.root`. Local files are memory-mapped, and links must stay inside the folder."""

    def __init__(self, settings: DataSettings) -> None:
        root = settings.root
        self._local = None if isinstance(root, str) else existing_root(settings)
        self._shown = redacted(str(self._local or root))
        if self._local:
            self._fs: fs.FileSystem = fs.LocalFileSystem(use_mmap=True)
            self._path = str(self._local)
            return
        try:
            self._fs, self._path = fs.FileSystem.from_uri(root)
            kind = self._fs.get_file_info(self._path).type
        except (ValueError, OSError, ImportError) as error:
            what = " ".join(str(error).replace(str(root), self._shown).split())
            raise DataError(f"data.root: {self._shown}: {what}; give a folder, or a URI for pyarrow.fs") from None
        if kind != fs.FileType.Directory:
            raise DataError(f"data.root: {self._shown}: no such folder; give data.root=FOLDER or a URI of one")

    def __str__(self) -> str:
        return self._shown

    def __truediv__(self, file: str) -> str:
        """Return the name of a file for messages."""
        return f"{self._shown.rstrip('/')}/{file}"

    def files(self, suffix: str) -> dict[str, tuple[int, int | None]]:
        """List unhidden files: relative name -> bytes, modification time in ns; raise `DataError` on failure."""
        try:
            found = self._found_here(self._local, suffix) if self._local else self._found_there(suffix)
        except OSError as error:
            raise DataError(f"{self}: cannot be listed ({one_line(error)})") from None
        return {name: found[name] for name in sorted(found) if not any(part[0] == "." for part in name.split("/"))}

    def open(self, file: str) -> pa.NativeFile:
        """Open a file; raise `OSError` if it is unreadable, or `DataError` if it is a link out of the root."""
        path = f"{self._path}/{file}" if self._local is None else str(inside(self._local, file))
        return self._fs.open_input_file(path)

    def _found_here(self, root: Path, suffix: str) -> dict[str, tuple[int, int | None]]:
        return {path.relative_to(root).as_posix(): size_and_time(path) for path in root.rglob(f"*{suffix}")}

    def _found_there(self, suffix: str) -> dict[str, tuple[int, int | None]]:
        return {
            str(PurePosixPath(info.path).relative_to(self._path)): (info.size, info.mtime_ns)
            for info in self._fs.get_file_info(fs.FileSelector(self._path, recursive=True))
            if info.type == fs.FileType.File and info.path.endswith(suffix)
        }
