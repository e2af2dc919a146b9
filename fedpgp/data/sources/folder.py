"""Image files: folders class/image, split/class/image and domain/class/image, and lists of names."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of
from fedpgp.data.sources import decoding
from fedpgp.data.sources.base import SINGLE_DOMAIN, SPLIT_NAMES, Scan, Source, existing_root, image_rows, inside

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


class ImageFiles(Source):
    """Base of sources whose images are files under `root`."""

    def __init__(self, settings: DataSettings) -> None:
        self.root = existing_root(settings)

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Decode the files of `rows`, in order."""
        return read_files(self.root, rows)


class FolderSource(ImageFiles):
    """root/class/image, or root/split/class/image if all folders of the root have names of splits."""

    name = "folder"
    layout = "class/image or train|val|test/class/image (for domain/class/image give data.name=domain_folder)"

    def scan(self) -> Scan:
        """List the images; class names are the sorted folder names."""
        try:
            groups = self._groups()
            classes = {folder: self._folders(folder) for folder, _, _ in groups}
            self._refuse("no class folder", [folder for folder, found in classes.items() if not found])
            class_names = tuple(sorted({name for found in classes.values() for name in found}))
            domains = tuple(dict.fromkeys(domain for _, domain, _ in groups))
            labels = {name: label for label, name in enumerate(class_names)}
            tables, empty = [], []
            for group, domain, split in groups:
                for name in classes[group]:
                    folder = os.path.join(group, name)
                    images = self._images(folder)
                    count = len(images["file"])
                    if not count:
                        empty.append(folder)
                    about = {"label": labels[name], "domain": domains.index(domain), "split": split}
                    tables.append(image_rows(count, **images, **about))
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); repair or remove it") from error
        except UnicodeEncodeError as error:
            raise DataError(f"{self.root}: a file name is not UTF-8 ({error.object!r}); rename it") from error
        self._refuse("no image in the class folder", empty)
        return Scan(class_names, domains, pa.concat_tables(tables), self.root)

    def _groups(self) -> list[tuple[str, str, str | None]]:
        """List the folders of class folders, relative to the root, each with its domain and split."""
        tops = self._folders("")
        if tops and all(top in SPLIT_NAMES for top in tops):
            return [(top, SINGLE_DOMAIN, SPLIT_NAMES[top]) for top in tops]
        return [("", SINGLE_DOMAIN, None)]

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """List `folder`, sorted, without hidden entries; links must stay inside the root."""
        with os.scandir(self.root / folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_symlink():
                inside(self.root, os.path.join(folder, entry.name))
        return entries

    def _folders(self, folder: str) -> list[str]:
        return [entry.name for entry in self._entries(folder) if entry.is_dir()]

    def _images(self, folder: str) -> dict[str, list[Any]]:
        entries = [entry for entry in self._entries(folder) if entry.name.lower().endswith(SUFFIXES)]
        stats = [size_and_time(entry) for entry in entries]
        files = [os.path.join(folder, entry.name) for entry in entries]
        return {"file": files, "size": [size for size, _ in stats], "modified": [time for _, time in stats]}

    def _refuse(self, what: str, folders: list[str]) -> None:
        if folders:
            where = f": {', '.join(folders)}" if any(folders) else ""  # the root itself has no name below it
            raise DataError(f"{self.root}: {what}{where}; expected {self.layout} in data.root")


class DomainFolderSource(FolderSource):
    """root/domain/class/image; a domain may lack classes."""

    name = "domain_folder"
    layout = "domain/class/image (for class/image give data.name=folder)"

    def _groups(self) -> list[tuple[str, str, str | None]]:
        domains = self._folders("")
        self._refuse("no domain folder", [] if domains else [""])
        return [(domain, domain, None) for domain in domains]


def read_files(root: Path, rows: pa.Table) -> Iterator[Image.Image]:
    """Decode the files of `rows`, which are relative to `root`, in order."""
    for file in rows["file"].to_pylist():
        yield decoding.read(inside(root, file), str(root / file))


def listed(root: Path, images: Sequence[tuple[str, int, int, str | None]], source: str) -> pa.Table:
    """Build the rows of listed images: file, label, domain and split. Files are relative to `root` and must exist.

    Raises:
        DataError: names outside the root, duplicate names, or missing files; starts with `source`.
    """
    files, labels, domains, splits = zip(*images, strict=True) if images else ((), (), (), ())
    escaping = [file for file in files if _escapes(file)]
    _refuse(source, "lead out of data.root", escaping, "use a list whose names are relative to the images")
    twice = [file for file, count in Counter(files).items() if count > 1]
    _refuse(source, "are listed twice", twice, "remove one of each, or fetch the list again")
    found = _found(root, files)
    missing = [file for file in files if file not in found]
    _refuse(source, "are not in data.root", missing, f"unpack all images under {root}, or remove a list of other data")
    sizes, times = zip(*(found[file] for file in files), strict=True) if files else ((), ())
    return image_rows(len(files), file=files, label=labels, domain=domains, split=splits, size=sizes, modified=times)


def names_in(folder: Path, what: str) -> list[str]:
    """List the sorted, unhidden names in a folder; raise `DataError` if it is unreadable or a name is not UTF-8."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {what} cannot be listed ({error.strerror})") from error
    wrong = [name for name in names if name != name.encode(errors="replace").decode()]
    if wrong:
        raise DataError(f"{folder}: a file name is not UTF-8 ({wrong[0]!r}); rename it")
    return names


def read_lines(path: Path) -> list[str]:
    """Read the lines of a list without empty ones and # comments; raise `DataError` if it is missing or not UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; save it as UTF-8") from None
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("#")]


def _refuse(source: str, what: str, files: Sequence[str], advice: str) -> None:
    if files:
        raise DataError(f"{source}: {len(files)} images {what}: {first_of(files)}; {advice}")


def _escapes(file: str) -> bool:
    path = PurePosixPath(file)
    return path.is_absolute() or ".." in path.parts or "\\" in file or "\0" in file


def size_and_time(entry: os.DirEntry[str] | Path) -> tuple[int, int]:
    """Return the bytes of a file and its modification time in ns."""
    stat = entry.stat()
    return stat.st_size, stat.st_mtime_ns


def _found(root: Path, files: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Look up size and time of all files in the folders of `files`, each of which is listed once."""
    found = {}
    for folder in dict.fromkeys(file.rpartition("/")[0] for file in files):
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    file = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_symlink():
                        inside(root, file)
                    if entry.is_file():
                        found[file] = size_and_time(entry)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); repair or remove it") from error
        if folder:
            inside(root, folder)
    return found
