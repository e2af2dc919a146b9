"""The folder that a command writes to, refused before there is anything to write."""

from __future__ import annotations

from pathlib import Path

from fedpgp.core.errors import ConfigError
from fedpgp.core.files import in_the_way


def writable(folder: Path | None) -> Path | None:
    """The value of `--out` as it was given.

    Raises:
        ConfigError: no file can be put there.
    """
    if folder is not None and (found := in_the_way(folder)) is not None:
        raise ConfigError(f"--out: {found} is not a folder that can be written to; give --out FOLDER")
    return folder
