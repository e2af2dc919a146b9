"""The registry of sources: one class per on-disk format."""

from __future__ import annotations

from fedpgp.config import DataSettings, Experiment
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean
from fedpgp.data.sources.base import Source
from fedpgp.data.sources.cifar import Cifar10, Cifar100
from fedpgp.data.sources.coop import Caltech101, DescribableTextures, Flowers102, Food101, OxfordPets
from fedpgp.data.sources.domains import DomainNet, DomainNet10, OfficeCaltech10
from fedpgp.data.sources.folder import DomainFolderSource, FolderSource
from fedpgp.data.sources.icons import IconsSource
from fedpgp.data.sources.parquet import ParquetSource
from fedpgp.data.sources.shapes import ShapesSource

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (
        IconsSource, ShapesSource, FolderSource, DomainFolderSource, ParquetSource,
        OxfordPets, Flowers102, DescribableTextures, Caltech101, Food101,
        Cifar10, Cifar100, OfficeCaltech10, DomainNet, DomainNet10,
    )
}  # fmt: skip


def find(name: str) -> type[Source]:
    """The class of a source by its name.

    Raises:
        ConfigError: unknown source.
    """
    if name not in SOURCES:
        hint = did_you_mean(name, SOURCES, "a source of yours is MODULE:CLASS")
        raise ConfigError(f"data.name: unknown data set {name!r}; {hint} (known: {', '.join(SOURCES)})")
    return SOURCES[name]


def check(settings: DataSettings) -> None:
    """Check the settings as far as it goes without reading the data.

    Raises:
        ConfigError: unknown source, or one that needs a root.
    """
    if find(settings.name).needs_root and settings.root is None:
        raise ConfigError(f"data: root is required for data {settings.name!r}; give data.root=FOLDER")


def complete(experiment: Experiment) -> Experiment:
    """The experiment with the template of its data filled in, as runs store it (older ones left it out)."""
    data = experiment.data
    if data.template is not None:
        return experiment
    data = data.model_copy(update={"template": find(data.name).template})
    return experiment.model_copy(update={"data": data})


def open_source(settings: DataSettings) -> Source:
    """The source that `settings` name.

    Raises:
        DataError: the root does not exist.
    """
    check(settings)
    return find(settings.name)(settings)
