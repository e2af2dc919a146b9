"""The folder `runs` of a storage root, here and behind a URI: what lies there, and what the next run is called."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fedpgp.core.files import TEMPORARY, locked, sync_folder
from fedpgp.storage.object_store import ObjectStore


class RunIndex:
    """All runs of a storage root, `ROOT/runs/NAME-DIGEST`, further ones of the same digest `.2`, `.3`, ...

    Args:
        uri: where they are kept besides (`config.StorageSettings`); then that decides which there are.
    """

    def __init__(self, root: Path, uri: str | None = None) -> None:
        self.path = root.absolute() / "runs"
        self._remote = ObjectStore.at(uri) / "runs" if uri else None

    def remote(self, path: Path) -> ObjectStore | None:
        """Where the run in this folder is kept besides."""
        return self._remote and self._remote / path.name

    def newest(self, name: str, digest: str) -> Path | None:
        """The folder of the newest run of this name and digest; it may still have to be fetched."""
        number = max(_numbers(self._there(), name, digest), default=None)
        return None if number is None else self.path / _folder_name(name, digest, number)

    def with_digest(self, digest: str) -> list[Path]:
        """The folders of all runs of this digest, whatever their names; they may still have to be fetched."""
        pattern = re.compile(rf"(?!{re.escape(TEMPORARY)}).+-{digest}(\.\d+)?")
        return [self.path / name for name in self._there() if pattern.fullmatch(name)]

    def named(self, name: str) -> list[Path]:
        """The folders of this machine with runs of this name, whatever their digests."""
        pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}(\.\d+)?")
        return [self.path / folder for folder in self._here() if pattern.fullmatch(folder)]

    def draft(self) -> Path:
        """A folder to write a run into, before it has a name."""
        self.path.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=self.path))
        folder.chmod(0o755)
        return folder

    def place(self, draft: Path, name: str, digest: str) -> Path:
        """Give a draft the next free name, beside earlier runs of the same digest; the folder appears whole."""
        there = [*self._here(), *(self._remote.names() if self._remote else ())]
        number = max(_numbers(there, name, digest), default=0) + 1
        while True:
            path = self.path / _folder_name(name, digest, number)
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
        """Put what is kept behind the URI in the place of `path`; not if a writer is at work there."""
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
        except BlockingIOError:  # whoever wants to write there is told by the lock
            shutil.rmtree(draft)

    def _there(self) -> list[str]:
        return self._remote.names() if self._remote else self._here()

    def _here(self) -> list[str]:
        return os.listdir(self.path) if self.path.is_dir() else []


def _folder_name(name: str, digest: str, number: int) -> str:
    return f"{name}-{digest}" + (f".{number}" if number > 1 else "")


def _numbers(names: Iterable[str], name: str, digest: str) -> list[int]:
    pattern = re.compile(re.escape(f"{name}-{digest}") + r"(?:\.(\d+))?")
    return [int(match[1] or 1) for match in map(pattern.fullmatch, names) if match]
