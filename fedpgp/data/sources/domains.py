"""Known domains: domain folders, ordered class names, published lists; Office-Caltech10 and DomainNet."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of
from fedpgp.data.sources import pickles
from fedpgp.data.sources.base import Scan, own_folder
from fedpgp.data.sources.folder import FolderSource
from fedpgp.data.sources.listing import FOLDERS, check_name
from fedpgp.data.sources.lists import listed, read_lines, with_slashes

OFFICE_DOMAINS = ("amazon", "caltech", "dslr", "webcam")
OFFICE_CLASSES = (
    "back_pack", "bike", "calculator", "headphones", "keyboard",
    "laptop_computer", "monitor", "mouse", "mug", "projector",
)  # fmt: skip
DOMAINNET_DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
DOMAINNET10_CLASSES = (
    "bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra",
)  # fmt: skip


class Listed(NamedTuple):
    """One line of a list: a file relative to the root, with class, domain, split and perhaps label."""

    file: str
    class_name: str
    domain: int
    split: str
    label: int | None = None


class DomainsSource(FolderSource):
    """DOMAIN/CLASS/image for known domains, split by the lists beside the domains, or by folders DOMAIN/SPLIT/CLASS."""

    layout = "DOMAIN/CLASS/image"
    domains: ClassVar[tuple[str, ...]]
    layouts: ClassVar[tuple[tuple[str, ...], ...]] = ()  # possible folders of the domains; empty: named like these
    class_names: ClassVar[tuple[str, ...] | None] = None  # in label order; None: all found
    classes: ClassVar[int | None] = None  # how many must be found; None: any number
    also_called: ClassVar[Mapping[str, str]] = {}  # folder -> class
    only_these: ClassVar[bool] = False  # ignore the folders of other classes
    lists: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}  # end of a list's name -> split
    list_folders: ClassVar[tuple[str, ...]] = ("", "splits")
    first_label: ClassVar[int | None] = None  # of `class_names` in the lists; None: these number other classes too
    damaged: ClassVar[tuple[str, ...]] = ()  # lines of lists that are ignored
    split_folders: ClassVar[Mapping[str, str]] = {}  # folder between domain and class -> split; empty: there is none

    def __init__(self, settings: DataSettings) -> None:
        super().__init__(settings)
        self.root, layout = own_folder(self.root, type(self), *(self.layouts or [self.domains]))
        self.at = dict(zip(self.domains, layout, strict=True))

    def scan(self) -> Scan:
        """List the images of the lists or, without lists, of all class folders."""
        for suffix, read in (("pkl", self._read_pickle), ("txt", self._read_text)):
            if suffix == "pkl" and self.class_names is None:
                continue  # FedBN's lists are of ten classes
            found, missing = {}, []
            for domain, (end, split) in product(self.domains, self.lists.items()):
                name = f"{domain}_{end}.{suffix}"
                paths = [path for folder in self.list_folders if (path := self.root / folder / name).is_file()]
                check_name(self.root / name)
                if paths:
                    found[domain, split] = paths[0]
                else:
                    missing.append(name)
            if found and missing:
                raise DataError(f"{self.root}: the list {', '.join(missing)} is missing; fetch all lists or remove all")
            if found:
                lines = [line for (domain, split), path in found.items() for line in read(path, domain, split)]
                return self._from_lists(lines, f"{self.root}/*.{suffix}")
        return self._from_folders(super().scan())

    def _read_text(self, path: Path, domain: str, split: str) -> list[Listed]:
        """Read a list of DomainNet or PACS: `clipart/zebra/clipart_344_000001.jpg 344`."""
        lines, number, names = [], self.domains.index(domain), self.class_names or ()
        for line in read_lines(path):
            file, *label = with_slashes(line).rsplit(maxsplit=1)
            parts = file.split("/")
            if len(parts) != 3 or parts[0] != domain or not "".join(label).isdecimal():
                raise DataError(f"{path}: {line!r} is not {domain}/CLASS/IMAGE LABEL; it is a list of other data")
            name = self._class(parts[1])
            if file in self.damaged or (self.only_these and name not in names):
                continue
            if names and name not in names:
                raise DataError(f"{path}: {parts[1]!r} is not a class of {self.name}; it is a list of other data")
            if self.first_label is not None and int(label[0]) != (right := names.index(name) + self.first_label):
                raise DataError(f"{path}: {line!r}: the label of {name} is {right}; fetch the list again")
            lines.append(Listed(f"{self.at[domain]}/{parts[1]}/{parts[2]}", name, number, split, int(label[0])))
        return lines

    def _read_pickle(self, path: Path, domain: str, split: str) -> list[Listed]:
        """Read a list of FedBN: (paths, class names), paths ending in DOMAIN/CLASS/IMAGE."""
        try:
            files, names = pickles.read(path)
            files, names = [str(file) for file in files], [str(name) for name in names]
        except (TypeError, ValueError):
            raise DataError(f"{path}: not a pair of paths and class names; fetch it again") from None
        if len(files) != len(names):
            raise DataError(f"{path}: {len(files)} paths but {len(names)} class names; fetch it again")
        lines, at = [], self.at[domain]
        for file, name in zip(files, names, strict=True):
            parts, known = with_slashes(file).split("/")[-3:], self._class(name)
            if len(parts) != 3 or parts[0] != domain or self._class(parts[1]) != known:
                raise DataError(f"{path}: {file!r} does not end in {domain}/{name}/IMAGE: image and label do not match")
            if known not in (self.class_names or ()):
                raise DataError(f"{path}: {name!r} is not a class of {self.name}; it is a list of other data")
            folders = [parts[1], *(alias for alias in self.also_called if self._class(alias) == known)]
            folder = next((folder for folder in folders if (self.root / at / folder).is_dir()), parts[1])
            lines.append(Listed(f"{at}/{folder}/{parts[2]}", known, self.domains.index(domain), split))
        return lines

    def _from_lists(self, lines: list[Listed], source: str) -> Scan:
        names = self.class_names
        if names is None:
            pairs = sorted({(line.label, line.class_name) for line in lines})
            names = tuple(name for _, name in pairs)
            if [label for label, _ in pairs] != list(range(len(pairs))) or len(set(names)) < len(names):
                raise DataError(
                    f"{source}: labels must be 0, 1, 2, ... and belong to one class folder each; fetch them again"
                )
        number = {name: label for label, name in enumerate(names)}
        images = [(line.file, number[line.class_name], line.domain, line.split) for line in lines]
        table, left_out = listed(self.root, images, source)
        if self.only_these:
            left_out.pop(FOLDERS, None)
        absent = sorted(set(number) - {line.class_name for line in lines})
        if absent:
            raise DataError(f"{source}: no image of {first_of(absent)}; fetch the lists again")
        return Scan(names, self.domains, table, self.class_names is None, left_out, self.root)

    def _from_folders(self, scan: Scan) -> Scan:
        """Relabel the rows with this data set's class order."""
        if self.class_names is None:
            if self.classes not in (None, count := len(scan.class_names)):
                raise DataError(f"{self.root}: {count} classes, not {self.classes}; unpack all of {self.name}")
            return scan
        found = [self._class(folder) for folder in scan.class_names]
        unknown = [folder for folder, name in zip(scan.class_names, found, strict=True) if name not in self.class_names]
        if unknown:
            raise DataError(f"{self.root}: {first_of(unknown)} is not a class of {self.name}; remove it")
        absent = sorted(set(self.class_names) - set(found))
        if absent:
            raise DataError(f"{self.root}: no folder of the class {first_of(absent)}; unpack all of {self.name}")
        relabel = np.array([self.class_names.index(name) for name in found])
        labels = pa.array(relabel[scan.rows["label"].to_numpy()], pa.int32())
        return replace(scan, class_names=self.class_names, rows=scan.rows.set_column(2, "label", labels))

    def _groups(self) -> list[tuple[str, str, str | None]]:
        splits = [
            (f"{folder}/{name}", domain, split)
            for domain, folder in self.at.items()
            for name, split in self.split_folders.items()
        ]
        missing = [folder for folder, _, _ in splits if not (self.root / folder).is_dir()]
        if len(missing) == len(splits):
            return [(folder, domain, None) for domain, folder in self.at.items()]
        if missing:
            raise DataError(f"{self.root}: no folder {first_of(missing)}; unpack all of {self.name}")
        for folder in self.at.values():
            others = set(self._folders(folder)) - self.split_folders.keys()
            self._left_out.update({str(self.root / folder / name): FOLDERS for name in others})
        return [*splits]

    def _folders(self, folder: str) -> list[str]:
        folders = super()._folders(folder)
        if self.only_these and self.class_names:
            return [name for name in folders if self._class(name) in self.class_names]
        return folders

    def _class(self, folder: str) -> str:
        return self.also_called.get(folder, folder)


class OfficeCaltech10(DomainsSource):
    """Four domains, ten classes in FedBN's order; folder names of FedBN or of the original release."""

    name = "office_caltech10"
    domains, class_names = OFFICE_DOMAINS, OFFICE_CLASSES
    folders = ("office_caltech_10", "office_caltech10")
    steps = (
        "office_caltech_10.zip, linked from https://github.com/med-air/FedBN -> ROOT/amazon, caltech, dslr, webcam",
        "optionally FedBN's lists beside them: ROOT/DOMAIN_train.pkl and ROOT/DOMAIN_test.pkl",
    )
    also_called: ClassVar = {"backpack": "back_pack", "laptop": "laptop_computer", "headphone": "headphones"}


class DomainNet(DomainsSource):
    """Six domains, all 345 classes, labelled by the official lists or, without these, by sorted folder names."""

    name = "domainnet"
    domains = DOMAINNET_DOMAINS
    folders = ("domainnet", "DomainNet")
    steps = (
        f"http://ai.bu.edu/M3SDA/ (the cleaned version, six zip files) -> ROOT/{', '.join(DOMAINNET_DOMAINS)}",
        "from the same page DOMAIN_train.txt and DOMAIN_test.txt of each -> ROOT",
    )


class DomainNet10(DomainsSource):
    """The ten classes of FedBN and of the paper, from its own download or from all of DomainNet."""

    name = "domainnet10"
    domains, class_names, only_these = DOMAINNET_DOMAINS, DOMAINNET10_CLASSES, True
    folders = ("domainnet", "DomainNet")
    steps = (
        "DomainNet.zip, linked from https://github.com/med-air/FedBN -> "
        f"ROOT/{', '.join(DOMAINNET_DOMAINS)}, DOMAIN_train.pkl and DOMAIN_test.pkl of each",
        "or all of DomainNet, http://ai.bu.edu/M3SDA/, with DOMAIN_train.txt and DOMAIN_test.txt of each -> ROOT",
    )
