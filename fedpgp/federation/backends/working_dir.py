"""What `ray job submit --working-dir FOLDER` sends to a cluster, by the rules that Ray itself goes by."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from fedpgp.core.errors import UserError

MIB = 2**20
LIMIT = 90 * MIB
"""Bytes; the head of a cluster refuses 100 MiB, and tells no file."""
NAMED = 8
"""Files that are shown by name."""


@dataclass(frozen=True)
class Upload:
    """The files that are sent, as they are: Ray packs them without compressing."""

    files: tuple[tuple[Path, int], ...]
    """relative to the folder, with their bytes; the biggest first"""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    @property
    def biggest(self) -> str:
        """The biggest files, a line each."""
        return "\n".join(f"{size / MIB:8.1f} MiB  {path}" for path, size in self.files[:NAMED])

    def check(self) -> None:
        """Refuse what is too much.

        Raises:
            UserError: it is over the limit; the biggest files are named.
        """
        if self.size > LIMIT:
            raise UserError(
                f"{self.size / MIB:.1f} MiB in {len(self.files)} files, more than the {LIMIT // MIB} that are sure to "
                f"be taken; name what the cluster does not need in .rayignore. The biggest:\n{self.biggest}"
            )


def of(folder: Path) -> Upload:
    """The files of a working folder, without what `.gitignore`, `.rayignore` and Ray itself leave out.

    Raises:
        UserError: it is not a folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder")
    folder = folder.absolute()
    found: list[tuple[Path, int]] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append((path.relative_to(folder), path.stat().st_size))

    packaging._dir_travel(
        folder,
        [packaging._get_excludes(folder, ray_constants.get_runtime_env_default_excludes())],
        note,
        include_gitignore=os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.getLogger(__name__),
    )
    return Upload(tuple(sorted(found, key=lambda item: (-item[1], item[0]))))
