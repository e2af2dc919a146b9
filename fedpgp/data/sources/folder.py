"""Image files: folders class/image, split/class/image and domain/class/image."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of
from fedpgp.data.class_names import in_order
from fedpgp.data.sources import decoding, listing
from fedpgp.data.sources.base import SINGLE_DOMAIN, SPLIT_NAMES, STATE, Scan, Source, existing_root, image_rows, inside
from fedpgp.data.sources.listing import composed


class ImageFiles(Source):
    """Base of sources whose images are files under `root`."""

    def __init__(self, settings: DataSettings) -> None:
        self.root = existing_root(settings)

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Decode the files of `rows`, in order."""
        return read_files(self.root, rows)


class FolderSource(ImageFiles):
    """root/class/image, or root/split/class/image if folders of the root have names of splits and no images."""

    name = "folder"
    layout = "class/image or train|val|test/class/image (for domain/class/image give data.name=domain_folder)"

    def __init__(self, settings: DataSettings) -> None:
        super().__init__(settings)
        self._left_out: dict[str, str] = {}  # path -> kind

    def scan(self) -> Scan:
        """List the images; class names are the sorted folder names, equal if they differ in Unicode form only."""
        self._left_out.clear()
        groups = self._groups()
        classes = {folder: self._folders(folder) for folder, _, _ in groups}
        self._refuse("no class folder", [folder for folder, found in classes.items() if not found])
        shown: dict[str, str] = {}
        for name in sorted({name for found in classes.values() for name in found}):
            shown.setdefault(composed(name), name)
        class_names = in_order(shown.values())
        domains = tuple(dict.fromkeys(domain for _, domain, _ in groups))
        labels = {name: label for label, name in enumerate(class_names)}
        tables, empty = [], []
        for group, domain, split in groups:
            for name in classes[group]:
                folder = os.path.join(group, name)
                files, states = self._images(folder)
                if not files:
                    empty.append(self._described(folder))
                about = {"label": labels[shown[composed(name)]], "domain": domains.index(domain), "split": split}
                columns = dict(zip(STATE, zip(*states, strict=True), strict=False))  # none without files
                tables.append(image_rows(len(files), file=files, **about, **columns))
        self._refuse("no image in the class folder", empty)
        left_out = Counter(self._left_out.values())
        return Scan(class_names, domains, pa.concat_tables(tables), left_out=left_out, root=self.root)

    def _groups(self) -> list[tuple[str, str, str | None]]:
        """List the folders of class folders, relative to the root, each with its domain and split."""
        tops = self._folders("")
        splits = [top for top in tops if top.lower() in SPLIT_NAMES]
        others = [top for top in tops if top not in splits]
        if not splits or (others and not any(map(self._has_class_folders, splits))):
            return [("", SINGLE_DOMAIN, None)]
        if others:
            raise DataError(
                f"{self.root}: beside {', '.join(splits)} there is {first_of(others)}, which is no split: "
                "move it away, or rename it to train, val or test"
            )
        return [(top, SINGLE_DOMAIN, SPLIT_NAMES[top.lower()]) for top in splits]

    def _has_class_folders(self, folder: str) -> bool:
        found = listing.entries(self.root / folder)
        return any(map(listing.is_folder, found)) and not any(listing.is_image(entry.name) for entry in found)

    def _folders(self, folder: str) -> list[str]:
        """The folders in `folder`; images beside them are left out."""
        folders = []
        for entry in listing.entries(self.root / folder):
            if listing.is_folder(entry):
                folders.append(entry.name)
            elif listing.is_image(entry.name):
                self._left_out[entry.path] = f"{listing.kind(entry.name)} outside the class folders"
        return folders

    def _images(self, folder: str) -> tuple[list[str], list[tuple[int, int, int]]]:
        """The images of a class folder, relative to the root, and their states."""
        images = []
        for entry in listing.entries(self.root / folder):
            if listing.is_image_file(entry):
                images.append(entry)
            else:
                self._left_out[entry.path] = listing.FOLDERS if entry.is_dir() else listing.kind(entry.name)
        files = [os.path.join(folder, entry.name) for entry in images]
        return files, [listing.state(entry) for entry in images]

    def _described(self, folder: str) -> str:
        """The folder and what lies in it."""
        own = [kind for path, kind in self._left_out.items() if os.path.dirname(path) == str(self.root / folder)]
        return f"{folder} ({listing.counted(own)})" if own else folder

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
