"""The folder `runs` of a storage root, on this machine and in an object store."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from fedpgp.core.files import TEMPORARY, check_readable, sync_folder
from fedpgp.storage.object_store import ObjectStore


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
