"""What the sources have in common: the rows they list and the interface they offer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What a file or folder calls a split -> what we call it."""

SINGLE_DOMAIN = "default"
"""Name of the domain of a source that has no domains."""

ROW_SCHEMA = pa.schema(
    [
        ("file", pa.string()),  # relative to the root, with forward slashes
        ("row", pa.int64()),  # number of the image in its file; null: the file is the image
        ("label", pa.int32()),  # index of the class name
        ("domain", pa.int32()),  # index of the domain
        ("split", pa.string()),  # train | val | test; null in a scan: the source has no splits
        ("size", pa.int64()),  # bytes of the file; null: no file
        ("modified", pa.int64()),  # when the file was last written, in ns since 1970; null: no file
    ]
)
"""One row per image."""


@dataclass(frozen=True)
class Scan:
    """What a source holds: `rows` have `ROW_SCHEMA`, in any order."""

    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    rows: pa.Table


class ImageReader(Protocol):
    """Decodes images, wherever they lie."""

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """One RGB image per row (columns `file` and `row`), in order; fastest if the rows are sorted.

        Raises:
            DataError: an image is missing, cannot be decoded, or lies outside the root.
        """
        ...


class Source(ImageReader, Protocol):
    """One data set in one on-disk format."""

    def __init__(self, settings: DataSettings) -> None: ...

    def scan(self) -> Scan:
        """List all images without opening them.

        Raises:
            DataError: the files are not laid out as this format wants them.
        """
        ...


def existing_root(settings: DataSettings) -> Path:
    """The folder of the data set, absolute and free of links."""
    if settings.root is None:
        raise DataError(f"data.root: {settings.name} needs the folder of the data set; give data.root=FOLDER")
    if isinstance(settings.root, str):
        raise DataError(f"data.root: {settings.name} needs a folder of this machine; of a URI only Parquet is read")
    root = Path(os.path.realpath(os.path.expanduser(settings.root)))
    if not root.is_dir():
        raise DataError(f"data.root: {settings.root}: no such folder; give data.root=FOLDER")
    return root


def inside(root: Path, file: str) -> Path:
    """The path of `file` under `root`, links followed; a path that leaves the root is refused."""
    path = Path(os.path.realpath(root / file))
    if not path.is_relative_to(root):
        raise DataError(f"{root / file}: leads out of data.root ({path}); copy the file instead of linking it")
    return path
