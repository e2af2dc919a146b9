"""Image folders: class/image, split/class/image and domain/class/image."""

import os
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fedpgp.core.errors import DataError
from fedpgp.data.sources.base import SINGLE_DOMAIN, SPLIT_NAMES, Scan, image_rows, inside
from fedpgp.data.sources.files import ImageFiles, size_and_time

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


@dataclass(frozen=True)
class Group:
    """A folder of class folders, relative to the root."""

    folder: str
    domain: str
    split: str | None


class FolderSource(ImageFiles):
    """root/class/image, or root/split/class/image if all folders of the root have names of splits."""

    name = "folder"
    layout = "class/image or train|val|test/class/image (for domain/class/image give data.name=domain_folder)"

    def scan(self) -> Scan:
        """List the images; class names are the sorted folder names."""
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
                    images = self._images(folder)
                    if not len(images["file"]):
                        empty.append(folder)
                    about = {"label": labels[name], "domain": domains.index(group.domain), "split": group.split}
                    tables.append(image_rows(len(images["file"]), **images, **about))
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

    def _groups(self) -> list[Group]:
        domains = self._folders("")
        self._refuse("no domain folder", [] if domains else [""])
        return [Group(domain, domain, None) for domain in domains]
