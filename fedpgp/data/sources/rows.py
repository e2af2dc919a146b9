"""Data sources from outside the package: a class that lists its images as rows, or scans and reads them itself."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from fedpgp.config import DataSettings
from fedpgp.core.errors import ConfigError, DataError, UserError
from fedpgp.core.plugins import Plugin, reason
from fedpgp.core.text import first_of, is_blank
from fedpgp.data.sources import decoding
from fedpgp.data.sources.base import SINGLE_DOMAIN, SPLIT_NAMES, Scan, Source, existing_root, image_rows
from fedpgp.data.sources.folder import read_files
from fedpgp.data.sources.lists import listed


class Row(NamedTuple):
    """One image of a source; a plain tuple will do."""

    image: str | Path | bytes | Image.Image
    """a file below `data.root` (relative to it, or absolute), the bytes of an encoded image, or the image itself"""
    label: int
    """index into `class_names`"""
    split: str | None = None
    """train, val or test; None for all: cut by `data.train_fraction` and `data.val_fraction`"""
    domain: str = SINGLE_DOMAIN


def scan(target: str, source: type[Source], settings: DataSettings) -> Scan:
    """Scan a source from outside the package; raise `DataError` for wrong rows, `ConfigError` if it raised an error."""
    try:
        found = source(settings).scan()
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"data {target}: it raised {reason(error)}") from error
    _check_names(target, found.class_names)
    labels = found.rows["label"].to_numpy()
    if not labels.size:
        raise DataError(f"data {target}: no rows")
    count, least, most = len(found.class_names), labels.min(), labels.max()
    if least < 0 or most >= count:
        raise DataError(f"data {target}: labels {least} to {most} for {count} class names")
    return found if found.root is not None else replace(found, root=_root(settings, found.rows))


def _root(settings: DataSettings, rows: pa.Table) -> Path | None:
    """The folder of the data set if all files of the rows are below it; None: the source reads them elsewhere."""
    if not isinstance(settings.root, Path):
        return None
    root = existing_root(settings)
    files = rows.filter(pc.is_valid(rows["size"]))["file"].unique().to_pylist()
    return root if all(os.path.isfile(os.path.join(root, file)) for file in files) else None


def adapted(plugin: Plugin) -> type[Source]:
    """The source that a plug-in is: a `Source`, or one made of its `class_names` and `rows`, else a `ConfigError`."""
    kind, wrong = plugin.kind, []
    template = getattr(kind, "template", Source.template)
    if not isinstance(template, str) or template.count("{}") != 1:
        wrong.append(f"template is {template!r}, not a text with one {{}} for the class name")
    lacking = sorted(getattr(kind, "__abstractmethods__", ()))
    source: type[Source] = kind
    if not issubclass(kind, Source):
        in_init = kind.__init__ is not object.__init__  # which may set them
        lacking = [name for name in ("class_names", "rows") if not (hasattr(kind, name) or in_init)]
        attributes = {"kind": kind, "name": plugin.target, "template": template}
        source = type(kind.__name__, (RowsSource,), attributes)
    if lacking:
        wrong.insert(0, f"missing {', '.join(lacking)}")
    if wrong:
        raise ConfigError(f"data.name: {plugin.target} is not a data source: {'; '.join(wrong)}")
    return source


class RowsSource(Source):
    """A source made of a class with `class_names` and `rows`, a method that gives a `Row` for each image."""

    kind: ClassVar[type[Any]]
    needs_root = False

    def __init__(self, settings: DataSettings) -> None:
        self._settings = settings
        given = () if self.kind.__init__ is object.__init__ else (settings,)
        self._own = self.kind(*given)
        missing = [name for name in ("class_names", "rows") if not hasattr(self._own, name)]
        if missing:
            raise ConfigError(f"data.name: {self.name} is not a data source: missing {', '.join(missing)}")
        self._rows = [Row(*row) for row in self._own.rows()]
        self._files = [isinstance(row.image, str | Path) for row in self._rows]

    def scan(self) -> Scan:
        """The rows, checked; names of images in memory end in a digest of their content."""
        _check_names(self.name, self._own.class_names)
        names, rows, where = tuple(self._own.class_names), self._rows, f"data {self.name}"
        domains = tuple(dict.fromkeys(str(row.domain) for row in rows))
        if not rows:
            raise DataError(f"{where}: rows gives no image")
        for number, row in enumerate(rows):
            if not isinstance(row.label, int | np.integer) or not 0 <= row.label < len(names):
                raise DataError(f"{where}: row {number}: label {row.label!r} is not one of 0 to {len(names) - 1}")
            if row.split is not None and row.split not in SPLIT_NAMES:
                raise DataError(f"{where}: row {number}: split {row.split!r} is not train, val or test")
            if not isinstance(row.image, str | Path | bytes | Image.Image) or self._files[number] != self._files[0]:
                raise DataError(
                    f"{where}: row {number}: its image is a {type(row.image).__name__}; give file names for all rows, "
                    "or bytes and PIL images for all"
                )
        labels = [int(row.label) for row in rows]
        domain_ids = [domains.index(str(row.domain)) for row in rows]
        splits = [row.split and SPLIT_NAMES[row.split] for row in rows]
        if self._files[0]:
            root = existing_root(self._settings)
            given = Path(os.path.abspath(os.path.expanduser(str(self._settings.root))))  # links in it are not resolved
            files = [_below((root, given), Path(str(row.image))) for row in rows]
            images = list(zip(files, labels, domain_ids, splits, strict=True))
            table, _ = listed(root, images, where)
            return Scan(names, domains, table, numbered=True, root=root)
        named = [f"{number:08d}-{_digest(row.image)}" for number, row in enumerate(rows)]
        table = image_rows(len(rows), file=named, label=labels, domain=domain_ids, split=splits)
        return Scan(names, domains, table, numbered=True)

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """The images of `rows`, in order."""
        if self._files[0]:
            yield from read_files(existing_root(self._settings), rows)
            return
        for file in rows["file"].to_pylist():
            image: Any = self._rows[int(file.partition("-")[0])].image
            where = f"data {self.name}, row {file}"
            yield decoding.decode(image, where) if isinstance(image, bytes) else decoding.to_rgb(image)


def _below(roots: Iterable[Path], file: Path) -> str:
    """The name of a file relative to the first of the roots that it is below; as it is if it is below none."""
    return next((file.relative_to(root) for root in roots if file.is_relative_to(root)), file).as_posix()


def _check_names(target: str, names: Any) -> None:
    where = f"data {target}: class_names"
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {names!r} is not a list of names")
    if empty := [number for number, name in enumerate(names) if is_blank(name)]:
        raise DataError(f"{where}: name {empty[0]} is empty")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: {first_of(twice)} occurs twice")


def _digest(image: Any) -> str:
    content = image if isinstance(image, bytes) else f"{image.mode} {image.size} ".encode() + image.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
