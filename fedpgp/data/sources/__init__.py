"""The registry of sources: one class per on-disk format."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedpgp.config import DataSettings, Experiment
from fedpgp.config.settings import UNION
from fedpgp.core import plugins
from fedpgp.core.errors import ConfigError, UserError
from fedpgp.core.plugins import Plugin
from fedpgp.data.sources import rows
from fedpgp.data.sources.base import Reader, Scan, Source
from fedpgp.data.sources.cifar import Cifar10, Cifar100
from fedpgp.data.sources.coop import Caltech101, DescribableTextures, Flowers102, Food101, OxfordPets
from fedpgp.data.sources.coop_more import SUN397, UCF101, EuroSAT, FGVCAircraft, StanfordCars
from fedpgp.data.sources.domain_sets import PACS, VLCS, OfficeHome, TerraIncognita
from fedpgp.data.sources.domains import DomainNet, DomainNet10, OfficeCaltech10
from fedpgp.data.sources.folder import DomainFolderSource, FolderSource
from fedpgp.data.sources.icons import IconsSource
from fedpgp.data.sources.imagenet import ImageNet, ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2
from fedpgp.data.sources.parquet import ParquetSource
from fedpgp.data.sources.shapes import ShapesSource
from fedpgp.data.sources.union import Union

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (
        IconsSource, ShapesSource, FolderSource, DomainFolderSource, ParquetSource,
        OxfordPets, Flowers102, DescribableTextures, Caltech101, Food101,
        StanfordCars, FGVCAircraft, SUN397, UCF101, EuroSAT, Cifar10, Cifar100,
        ImageNet, ImageNetV2, ImageNetSketch, ImageNetA, ImageNetR,
        OfficeCaltech10, DomainNet, DomainNet10, PACS, OfficeHome, VLCS, TerraIncognita,
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
    """All values of `data.name`, built in and installed."""
    return [*SOURCES, UNION, *(name for name, _ in plugins.installed(plugins.SOURCES))]


def plugin(name: str) -> Plugin | None:
    """The plug-in that a source is; None: it is built in."""
    return None if name in SOURCES else plugins.find("data.name", plugins.SOURCES, name)


def plugins_of(settings: DataSettings) -> dict[str, Plugin | None]:
    """The plug-in of `data`, or of each part of a union, as `data.TITLE`; None: it is built in."""
    if settings.parts is not None:
        return {f"data.{part.title_or_name}": plugin(part.name) for part in settings.parts}
    return {"data": plugin(settings.name)}


def check(settings: DataSettings) -> None:
    """Raise `ConfigError` if a data set is unknown, or needs a root that is not given."""
    for part in settings.parts or ():
        with in_part(part.title_or_name):
            check(part)
    if settings.parts is None and find(settings.name).needs_root and settings.root is None:
        raise ConfigError(f"data: root is required for data {settings.name!r}; give data.root=FOLDER")


@contextmanager
def in_part(title: str) -> Iterator[None]:
    """Name the part of a union in an error about its data."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"data.parts: {title}: {error}") from error


def complete(experiment: Experiment) -> Experiment:
    """The experiment with the templates of its data filled in, as runs store it (older ones left it out)."""
    return experiment.model_copy(update={"data": _complete(experiment.data)})


def _complete(data: DataSettings) -> DataSettings:
    if data.parts is not None:
        return data.model_copy(update={"parts": tuple(_complete(part) for part in data.parts)})
    return data if data.template else data.model_copy(update={"template": find(data.name).template})


def open_source(settings: DataSettings) -> Reader:
    """What reads the images of `settings`; raise `DataError` if a root does not exist."""
    check(settings)
    if settings.parts is not None:
        readers = {}
        for part in settings.parts:
            with in_part(part.title_or_name):
                readers[part.title_or_name] = open_source(part)
        return Union(readers)
    return find(settings.name)(settings)


def scan(settings: DataSettings) -> Scan:
    """What the source of one data set contains; raise `DataError` if the data cannot be used."""
    check(settings)
    source = find(settings.name)
    return source(settings).scan() if settings.name in SOURCES else rows.scan(settings.name, source, settings)
