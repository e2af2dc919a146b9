"""The folder `runs` of a storage root, on this machine and behind a URI: finds runs and names new ones."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from fedpgp.core.files import TEMPORARY, locked, sync_folder
from fedpgp.storage.object_store import ObjectStore


class RunIndex:
    """All runs of a storage root, `ROOT/runs/NAME-DIGEST`; further runs of the same digest end in `.2`, `.3`, ...

    Args:
        uri: object store that holds the authoritative copies (`config.StorageSettings`).
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.path = root.absolute() / "runs"
        self._remote = ObjectStore.at(uri) / "runs" if uri else None

    def remote(self, path: Path) -> ObjectStore | None:
        """Return the remote copy of the run in this folder."""
        return self._remote and self._remote / path.name

    def newest(self, name: str, digest: str) -> Path | None:
        """Return the folder of the newest run of this name and digest; it may not be fetched yet."""
        prefix = re.escape(f"{name}-{digest}")
        return max(self._matching(prefix, self._names()), key=_number, default=None)

    def with_digest(self, digest: str) -> list[Path]:
        """List the folders of all runs of this digest; they may not be fetched yet."""
        return self._matching(rf"(?!{re.escape(TEMPORARY)}).+-{digest}", self._names())

    def named(self, name: str) -> list[Path]:
        """List the folders of all runs of this name on this machine."""
        return self._matching(rf"{re.escape(name)}-[0-9a-f]{{12}}", self._local_names())

    def draft(self) -> Path:
        """Create a folder to write a run into before it has a name."""
        self.path.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.path))
        folder.chmod(0o755)
        return folder

    def place(self, draft: Path, name: str, digest: str) -> Path:
        """Rename a draft to the next free name of its digest, in one atomic step."""
        taken = [*self._local_names(), *(self._remote.names() if self._remote else ())]
        number = max(map(_number, self._matching(re.escape(f"{name}-{digest}"), taken)), default=0) + 1
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
        draft = self.draft()
        try:
            remote.fetch(draft)
            if path.exists():
                with locked(path / ".lock", wait=False):
                    shutil.rmtree(path)
            draft.rename(path)
            sync_folder(self.path)
        except BlockingIOError:  # the lock refuses other writers later
            shutil.rmtree(draft)

    def _names(self) -> list[str]:
        return self._remote.names() if self._remote else self._local_names()

    def _local_names(self) -> list[str]:
        return os.listdir(self.path) if self.path.is_dir() else []

    def _matching(self, prefix: str, names: list[str]) -> list[Path]:
        """The folders called like a pattern, with or without a number."""
        pattern = re.compile(rf"{prefix}(\.\d+)?")
        return [self.path / name for name in names if pattern.fullmatch(name)]


def _number(path: Path) -> int:
    """The number at the end of a folder's name; 1 without one."""
    match = re.search(r"-[^-.]+\.(\d+)$", path.name)
    return int(match[1]) if match else 1
