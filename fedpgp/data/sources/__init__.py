"""The registry of sources: one class per on-disk format."""

from fedpgp.config import DataSettings, Experiment
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError
from fedpgp.core.plugins import Plugin
from fedpgp.data.sources import rows
from fedpgp.data.sources.base import Scan, Source
from fedpgp.data.sources.cifar import Cifar10, Cifar100
from fedpgp.data.sources.coop import Caltech101, DescribableTextures, Flowers102, Food101, OxfordPets
from fedpgp.data.sources.domains import DomainNet, DomainNet10, OfficeCaltech10
from fedpgp.data.sources.folder import DomainFolderSource, FolderSource
from fedpgp.data.sources.parquet import IconsSource, ParquetSource
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
    """The class of a source: built in, an entry point, or MODULE:CLASS; raise `ConfigError` if it cannot be used."""
    if name in SOURCES:
        return SOURCES[name]
    if (found := plugin(name)) is None:
        raise plugins.unknown("data.name", "data set", plugins.SOURCES, name, SOURCES)
    return rows.adapted(found)


def names() -> list[str]:
    """All names of sources, built in and installed."""
    return [*SOURCES, *(name for name, _ in plugins.installed(plugins.SOURCES))]


def plugin(name: str) -> Plugin | None:
    """The plug-in that a source is; None: it is built in."""
    return None if name in SOURCES else plugins.find("data.name", plugins.SOURCES, name)


def check(settings: DataSettings) -> type[Source]:
    """The class that `settings` name; raise `ConfigError` if it is unknown, or needs a root that is not given."""
    source = find(settings.name)
    if source.needs_root and settings.root is None:
        raise ConfigError(f"data: root is required for data {settings.name!r}; give data.root=FOLDER")
    return source


def complete(experiment: Experiment) -> Experiment:
    """The experiment with the template of its data filled in, as runs store it (older ones left it out)."""
    data = experiment.data
    if data.template is not None:
        return experiment
    data = data.model_copy(update={"template": find(data.name).template})
    return experiment.model_copy(update={"data": data})


def open_source(settings: DataSettings) -> Source:
    """The source that `settings` name; raise `DataError` if its root does not exist."""
    return check(settings)(settings)


def scan(settings: DataSettings) -> Scan:
    """What the source contains; raise `DataError` if the data cannot be used."""
    if settings.name in SOURCES:
        return open_source(settings).scan()
    return rows.scan(settings.name, check(settings), settings)
