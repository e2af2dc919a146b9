"""The interface of data sources, and the rows and paths that they share."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.data.sources.listing import check_name

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Word for a split in a file or folder name, in small letters, as on Hugging Face -> its name in the manifest."""

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
        ("changed", pa.int64()),  # when content, times or name last changed: no program can set it; null: not known
    ]
)
"""One row per image."""
STATE = ("size", "modified", "changed")
"""The columns that tell whether a file is still the same, in the order of `listing.state`."""


def image_rows(count: int, **columns: Any) -> pa.Table:
    """Build `count` rows of `ROW_SCHEMA`. A column is an array or one value for all rows; missing ones are null."""
    arrays = []
    for column in ROW_SCHEMA:
        value = columns.get(column.name)
        alike = value is None or isinstance(value, str | int)
        arrays.append(pa.repeat(pa.scalar(value, column.type), count) if alike else pa.array(value, column.type))
    return pa.table(arrays, schema=ROW_SCHEMA)


@dataclass(frozen=True)
class Scan:
    """The images of a source: `rows` have `ROW_SCHEMA`, in any order."""

    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    rows: pa.Table
    numbered: bool = False
    """the data number their classes; false: their labels are names, which the source has put in order"""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """how many files and folders lie where images are expected and are not used, by kind"""
    root: Path | None = None
    """folder of this machine to which the files of the rows are relative; None: there is none"""
    test_only: bool = False
    """nobody trains on these images: all have the split `test`, which is not cut"""


class Reader(Protocol):
    """Reads images that a scan has listed."""

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """See `Source.read`."""


class Source(ABC):
    """One data set in one on-disk format, described by its class attributes."""

    name: ClassVar[str]
    """`data.name`"""
    template: ClassVar[str] = "a photo of a {}."
    """hand-written prompt; CoOp's for its data sets"""
    needs_root: ClassVar[bool] = True
    """whether `data.root` must be given"""
    folders: ClassVar[tuple[str, ...]] = ()
    """possible names of the unpacked folder"""
    steps: ClassVar[tuple[str, ...]] = ()
    """manual download steps, with ROOT for `data.root`; empty: none"""

    @abstractmethod
    def __init__(self, settings: DataSettings) -> None: ...

    @abstractmethod
    def scan(self) -> Scan:
        """List all images without opening them; raise `DataError` if the files do not have this format's layout."""

    @abstractmethod
    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Yield one RGB image per row (columns `file` and `row`), in order; fastest if the rows are sorted.

        Raises:
            DataError: an image is missing, cannot be decoded, or is outside the root.
        """

    @staticmethod
    def download(root: Path) -> None:
        """Download the data set to an empty folder. Without this method it must be downloaded manually."""
        raise NotImplementedError

    @classmethod
    def names_in_root(cls) -> tuple[str, ...]:
        """What is looked for in the root: a copy there would be read instead of a download."""
        return cls.folders


def existing_root(settings: DataSettings) -> Path:
    """Return the folder of the data set as an absolute path with links resolved."""
    if settings.root is None:
        raise DataError(f"data.root: {settings.name} needs the folder of the data set; give data.root=FOLDER")
    if isinstance(settings.root, str):
        raise DataError(f"data.root: {settings.name} needs a folder of this machine; of a URI only Parquet is read")
    root = Path(os.path.realpath(os.path.expanduser(settings.root)))
    if not root.is_dir():
        check_name(Path(os.path.expanduser(settings.root)).absolute())
        raise DataError(f"data.root: {settings.root}: no such folder; give data.root=FOLDER")
    return root


def inside(root: Path, file: str) -> Path:
    """Return the path of `file` under `root`; reject names that lead out of the root. Links are followed."""
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise DataError(f"{root / file}: is outside data.root; give a name relative to it, without ..")
    return root / file


def own_folder(root: Path, source: type[Source], *layouts: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """Return the folder that has all folders of one of the layouts, and this layout.

    It is `root`, or one of the data set's subfolders. Raise `DataError` if there is none, or if one has several layouts
    in different places.
    """
    candidates = [root, *(root / folder for folder in source.folders)]
    for folder in candidates:
        complete = [layout for layout in layouts if all((folder / part).is_dir() for part in layout)]
        if len({tuple(os.path.realpath(folder / part) for part in layout) for layout in complete}) > 1:
            both = " and ".join(", ".join(layout) for layout in complete)
            raise DataError(f"{folder}: {source.name} is here twice: {both}; move one of them away")
        if complete:
            return folder, complete[0]
    at = next((folder for folder in candidates[1:] if folder.is_dir()), root)
    nearest = max(layouts, key=lambda layout: sum((at / part).is_dir() for part in layout))
    missing = [part for part in nearest if not (at / part).is_dir()]
    for part in missing:
        check_name(at / part)
    raise DataError(
        f"{at}: {source.name} needs the folder {', '.join(missing)} here; get it: {'; '.join(source.steps)}"
    )
