"""The registry of sources: one line per on-disk format."""

from __future__ import annotations

from collections.abc import Mapping

from fedpgp.config import DataSettings
from fedpgp.data.sources.base import Source
from fedpgp.data.sources.folder import DomainFolderSource, FolderSource
from fedpgp.data.sources.icons import IconsSource
from fedpgp.data.sources.parquet import ParquetSource
from fedpgp.data.sources.shapes import ShapesSource

SOURCES: Mapping[str, type[Source]] = {
    "icons": IconsSource,
    "shapes": ShapesSource,
    "folder": FolderSource,
    "domain_folder": DomainFolderSource,
    "parquet": ParquetSource,
}


def open_source(settings: DataSettings) -> Source:
    """The source that `settings` name.

    Raises:
        DataError: the root does not exist.
    """
    return SOURCES[settings.name](settings)
