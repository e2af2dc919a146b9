"""Image folders: class/image, split/class/image and domain/class/image."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pyarrow as pa

from fedpgp.core.errors import DataError
from fedpgp.data.sources.base import ROW_SCHEMA, SINGLE_DOMAIN, SPLIT_NAMES, Scan, inside
from fedpgp.data.sources.files import ImageFiles, size_and_time

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Group:
    """A folder of class folders, relative to the root."""

    folder: str
    domain: str
    split: str | None


class FolderSource(ImageFiles):
    """root/class/image, or root/split/class/image if all folders of the root are called like splits."""

    name = "folder"
    layout = "class/image or train|val|test/class/image (for domain/class/image give data.name=domain_folder)"

    def scan(self) -> Scan:
        """List the images; class names are the sorted folder names. All empty class folders are named at once."""
        try:
            groups = {group: self._class_folders(group.folder) for group in self._groups()}
            self._refuse("no class folder", [group.folder for group, found in groups.items() if not found])
            class_names = tuple(sorted({name for found in groups.values() for name in found}))
            domains = tuple(dict.fromkeys(group.domain for group in groups))
            labels = {name: label for label, name in enumerate(class_names)}
            tables, empty = [], []
            for group, found in groups.items():
                for name in found:
                    folder = os.path.join(group.folder, name)
                    files, stats = self._images(folder)
                    if not files:
                        empty.append(folder)
                    tables.append(_rows(files, stats, labels[name], domains.index(group.domain), group.split))
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror}); repair or remove it") from error
        except UnicodeEncodeError as error:
            raise DataError(f"{self.root}: a file name is not UTF-8 ({error.object!r}); rename it") from error
        self._refuse("no image in the class folder", empty)
        return Scan(class_names, domains, pa.concat_tables(tables))

    def _groups(self) -> list[Group]:
        tops = self._folders("")
        if tops and all(top in SPLIT_NAMES for top in tops):
            return [Group(top, SINGLE_DOMAIN, SPLIT_NAMES[top]) for top in tops]
        return [Group("", SINGLE_DOMAIN, None)]

    def _class_folders(self, folder: str) -> list[str]:
        return self._folders(folder)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What is in `folder`, sorted, without hidden entries; links must stay inside the root."""
        with os.scandir(self.root / folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_symlink():
                inside(self.root, os.path.join(folder, entry.name))
        return entries

    def _folders(self, folder: str) -> list[str]:
        return [entry.name for entry in self._entries(folder) if entry.is_dir()]

    def _images(self, folder: str) -> tuple[list[str], list[tuple[int, int]]]:
        images = [entry for entry in self._entries(folder) if entry.name.lower().endswith(SUFFIXES)]
        return [os.path.join(folder, entry.name) for entry in images], [size_and_time(entry) for entry in images]

    def _refuse(self, what: str, folders: list[str]) -> None:
        if folders:
            where = f": {', '.join(folders)}" if any(folders) else ""  # the root itself has no name below it
            raise DataError(f"{self.root}: {what}{where}; expected {self.layout} in data.root")


class DomainFolderSource(FolderSource):
    """root/domain/class/image; a domain may lack classes."""

    name = "domain_folder"
    layout = "domain/class/image (for class/image give data.name=folder)"

    def _groups(self) -> list[Group]:
        domains = self._folders("")
        self._refuse("no domain folder", [] if domains else [""])
        return [Group(domain, domain, None) for domain in domains]


def _rows(files: list[str], stats: list[tuple[int, int]], label: int, domain: int, split: str | None) -> pa.Table:
    count = len(files)
    columns = [
        pa.array(files, pa.string()),
        pa.nulls(count, pa.int64()),
        pa.repeat(pa.scalar(label, pa.int32()), count),
        pa.repeat(pa.scalar(domain, pa.int32()), count),
        pa.repeat(pa.scalar(split, pa.string()), count),
        *(pa.array([stat[part] for stat in stats], pa.int64()) for part in (0, 1)),
    ]
    return pa.table(columns, schema=ROW_SCHEMA)
