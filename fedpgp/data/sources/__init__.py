"""The registry of sources: one line per on-disk format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedpgp.config import DataSettings
from fedpgp.data.sources.base import Source
from fedpgp.data.sources.cifar import open_cifar
from fedpgp.data.sources.coop import Caltech101, DescribableTextures, Flowers102, Food101, OxfordPets
from fedpgp.data.sources.domains import DomainNet, DomainNet10, OfficeCaltech10
from fedpgp.data.sources.folder import DomainFolderSource, FolderSource
from fedpgp.data.sources.icons import IconsSource
from fedpgp.data.sources.parquet import ParquetSource
from fedpgp.data.sources.shapes import ShapesSource

SOURCES: Mapping[str, Callable[[DataSettings], Source]] = {
    "icons": IconsSource,
    "shapes": ShapesSource,
    "folder": FolderSource,
    "domain_folder": DomainFolderSource,
    "parquet": ParquetSource,
    "oxford_pets": OxfordPets,
    "flowers102": Flowers102,
    "dtd": DescribableTextures,
    "caltech101": Caltech101,
    "food101": Food101,
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "office_caltech10": OfficeCaltech10,
    "domainnet": DomainNet,
    "domainnet10": DomainNet10,
}


def open_source(settings: DataSettings) -> Source:
    """The source that `settings` name.

    Raises:
        DataError: the root does not exist.
    """
    return SOURCES[settings.name](settings)
