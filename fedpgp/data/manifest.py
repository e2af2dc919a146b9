"""The manifest: all images of a data set as one Arrow table in canonical order, with a digest."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.config import DataSettings
from fedpgp.config.settings import UNION
from fedpgp.core.errors import DataError
from fedpgp.core.files import write_durably
from fedpgp.core.seeding import numpy_generator, shuffled_ranks
from fedpgp.core.text import first_of, is_blank, redacted
from fedpgp.data import sources
from fedpgp.data.class_names import assign
from fedpgp.data.sources.base import ROW_SCHEMA
from fedpgp.data.sources.listing import FOLDERS, counted
from fedpgp.data.sources.union import SEPARATOR

log = logging.getLogger(__name__)

SEPARATOR_OF_TEXTS, DIGEST_ROWS = "\0", 2**16
"""What is between two texts in a digest, and rows whose texts are Python objects at a time."""


@dataclass(frozen=True)
class Manifest:
    """All images of a data set: `table` has `ROW_SCHEMA`, sorted by file and row; row numbers identify images."""

    name: str
    class_names: tuple[str, ...]
    domains: tuple[str, ...]
    table: pa.Table
    root: Path | None = field(default=None, compare=False)
    """folder of this machine to which the files are relative; None: there is none, or it is not known; not saved"""
    parts: tuple[Manifest, ...] = field(default=(), compare=False)
    """of a union its data sets, in the order of the settings, each with its title as `name`; not saved"""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def members(self) -> tuple[Manifest, ...]:
        """The data sets: the parts of a union, or this one."""
        return self.parts or (self,)

    @property
    def texts(self) -> tuple[str, ...]:
        """The class names in prompts: those of the parts, of which two may have the same. [C]"""
        return tuple(name for part in self.members for name in part.class_names)

    @cached_property
    def labels(self) -> np.ndarray:
        """Index into `class_names` per row. int32 [n]"""
        return np.asarray(self.table["label"].to_numpy())

    @cached_property
    def domain_ids(self) -> np.ndarray:
        """Index into `domains` per row. int32 [n]"""
        return np.asarray(self.table["domain"].to_numpy())

    @cached_property
    def splits(self) -> np.ndarray:
        """train, val or test per row. str [n]"""
        return np.asarray(self.table["split"].to_numpy(), "U5")

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits over class names, domains and rows: relative names and sizes, not the root or the times.

        It is equal for copies of the data, so that runs can be compared. The content of the
        files is not part, see `content.digest`.
        """
        about = json.dumps([self.class_names, self.domains])
        return self._digest(about, [name for name in ROW_SCHEMA.names if name not in ("modified", "changed")])

    @cached_property
    def files_digest(self) -> str:
        """Sixteen hex digits over the files, their sizes and modification times.

        It stands for the images where the content of the files is not known. Names of classes, splits and domains are
        not part.
        """
        return self._digest("", ["file", "row", "size", "modified"])

    def _digest(self, about: str, columns: Sequence[str]) -> str:
        digest = hashlib.sha256(about.encode())
        for name in columns:
            column = self.table[name]
            if pa.types.is_string(column.type):
                for start in range(0, len(column), DIGEST_ROWS):
                    texts = column.slice(start, DIGEST_ROWS).to_pylist()
                    digest.update((SEPARATOR_OF_TEXTS * (start > 0) + SEPARATOR_OF_TEXTS.join(texts)).encode())
            else:
                digest.update(pc.fill_null(column, -1).to_numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def check_not_empty(self) -> None:
        """Raise `DataError` with the files of 0 bytes, before any image is read."""
        empty = self.table.filter(pc.equal(self.table["size"], 0))["file"].to_pylist()
        if empty:
            raise DataError(f"{first_of(empty, 20)}: the image is empty (0 bytes); replace or remove it")

    def save(self, path: Path) -> None:
        """Write an Arrow IPC file atomically; create missing folders."""
        about = {
            "name": self.name,
            "class_names": json.dumps(self.class_names),
            "domains": json.dumps(self.domains),
            "digest": self.digest,
        }
        content = io.BytesIO()
        with pa.ipc.new_file(content, ROW_SCHEMA.with_metadata(about)) as writer:
            writer.write_table(self.table)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote; raise `DataError` if the file is missing or damaged, or does not match its digest."""
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            names, domains = (tuple(json.loads(about[key])) for key in ("class_names", "domains"))
            manifest = cls(about["name"], names, domains, table.replace_schema_metadata())
            intact = manifest.table.schema == ROW_SCHEMA and manifest.digest == about["digest"]
        except FileNotFoundError:
            raise DataError(f"{path}: no such manifest; build it again") from None
        except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a complete manifest; delete the file and build it again") from error
        if not intact:
            raise DataError(f"{path}: content and digest of the manifest differ; delete the file and build it again")
        return manifest


def build(settings: DataSettings) -> Manifest:
    """Scan the source and sort its rows into canonical order, with the names and splits of `settings`.

    A source with at most one split is cut by class and domain (`train_fraction`, `val_fraction`), unless it is for
    tests only. Raise `DataError` if the data are invalid, or do not match `data.class_names`. Log what lies beside the
    images and is not used.
    """
    if settings.parts is not None:
        parts = []
        for part in settings.parts:
            with sources.in_part(part.title_or_name):
                parts.append(replace(build(part), name=part.title_or_name))
        return _union(parts)
    scan = sources.scan(settings)
    if scan.left_out:
        count, folders = sum(scan.left_out.values()), scan.left_out.get(FOLDERS, 0)
        what = "file" if not folders else FOLDERS.removesuffix("s") if folders == count else "file or folder"
        are = f"1 {what} is" if count == 1 else f"{count} {what.replace(' or ', 's and ')}s are"
        kinds = "" if folders == count else f": {counted(scan.left_out)}"
        log.warning("%s: %s left out%s", redacted(str(settings.root)), are, kinds)
    if any(map(is_blank, scan.domains)):
        raise DataError(f"{redacted(str(settings.root))}: a domain has an empty name; rename it")
    class_names, relabel = assign(scan.class_names, settings.class_names, scan.numbered)
    rows = scan.rows.sort_by([("file", "ascending"), ("row", "ascending")]).combine_chunks()
    rows = rows.set_column(2, "label", pa.array(relabel[rows["label"].to_numpy()], pa.int32()))
    counts = np.bincount(rows["label"].to_numpy(), minlength=len(class_names))
    empty = [class_names[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise DataError(f"{settings.root}: no image of {first_of(empty, 20)}; add images, or leave the class out")
    named = set(rows["split"].unique().to_pylist()) - {None}
    needed = {"test"} if scan.test_only else {"train", "test"}
    if len(named) < len(needed):
        rows = rows.set_column(4, "split", _cut(rows, settings))
    elif missing := needed - named:
        raise DataError(
            f"{settings.root}: no {missing.pop()} split, only {' and '.join(sorted(named))}; "
            "rename a split, or put all images into one to have it cut by data.train_fraction"
        )
    return Manifest(settings.name, class_names, scan.domains, rows.cast(ROW_SCHEMA), scan.root)


def _union(parts: Sequence[Manifest]) -> Manifest:
    """Several data sets as one, with the files `TITLE/FILE`, and the domains `TITLE` or, of several, `TITLE/DOMAIN`.

    Classes of different parts differ, also if they have one name: then the title is added, and the log says so.
    """
    counts = Counter(name for part in parts for name in part.class_names)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        log.warning("%s: a class of several parts of the union; they are kept apart", first_of(twice, 5))
    names, domains, tables = list[str](), list[str](), {}
    for part in parts:
        offsets = {"label": len(names), "domain": len(domains)}
        names += [name if counts[name] == 1 else f"{name} ({part.name})" for name in part.class_names]
        domains += [f"{part.name}/{domain}" if len(part.domains) > 1 else part.name for domain in part.domains]
        table = part.table
        for key, offset in offsets.items():
            number = ROW_SCHEMA.get_field_index(key)
            table = table.set_column(
                number, ROW_SCHEMA.field(number), pc.add(table[key], pa.scalar(offset, pa.int32()))
            )
        files = pc.binary_join_element_wise(part.name, table["file"], SEPARATOR)
        tables[f"{part.name}{SEPARATOR}"] = table.set_column(0, ROW_SCHEMA.field("file"), files)
    rows = pa.concat_tables([tables[title] for title in sorted(tables)]).combine_chunks()
    return Manifest(UNION, tuple(names), tuple(domains), rows, parts=tuple(parts))


def _cut(rows: pa.Table, settings: DataSettings) -> pa.Array:
    """Split each (class, domain), with at least one train and one test image if it has two."""
    keys = rows["label"].to_numpy().astype(np.int64) * (1 + pc.max(rows["domain"]).as_py()) + rows["domain"].to_numpy()
    ranks = shuffled_ranks(keys, numpy_generator(settings.split_seed, "split"))
    counts = np.bincount(keys)[keys]
    train = np.maximum(1, np.minimum(np.rint(settings.train_fraction * counts), counts - 1))
    val = np.minimum(np.rint(settings.val_fraction * counts), np.maximum(0, counts - train - 1))
    return pa.array(np.select([ranks < train, ranks < train + val], ["train", "val"], "test"))
