"""Parquet files in Hugging Face's format: an image column, a label column, class names in the metadata."""

import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, groupby
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import one_line, redacted
from fedpgp.data.class_names import in_order
from fedpgp.data.sources import base
from fedpgp.data.sources.base import ROW_SCHEMA, SINGLE_DOMAIN, SPLIT_NAMES, STATE, Scan, Source, image_rows
from fedpgp.data.sources.decoding import decode
from fedpgp.data.sources.listing import composed, files_below, is_junk, kind, state

PREFERRED = ("image", "img", "label", "fine_label")
"""Preferred columns if several fit (CIFAR-100 has fine and coarse labels)."""
DOMAIN = "domain"
_SPLIT = re.compile(rf"(?:^|[-_. 0-9])({'|'.join(SPLIT_NAMES)})(?=[-_. 0-9]|$)", re.IGNORECASE)
"""A split in a name, between the separators of Hugging Face."""


@dataclass(frozen=True)
class Columns:
    """The columns of a file by their meaning; `names` and `domain_names` belong to integer columns (ClassLabel)."""

    image: str
    label: str
    domain: str | None
    names: tuple[str, ...] | None
    domain_names: tuple[str, ...] | None


class ParquetSource(Source):
    """Every *.parquet under the root; a word in the name of a file (train-0000.parquet) or of its folder is the split.

    The root is a local folder, whose files are memory-mapped, or a `pyarrow.fs` URI.
    """

    name = "parquet"

    def __init__(self, settings: DataSettings) -> None:
        root = settings.root
        self.class_names = settings.class_names
        self._local = None if isinstance(root, str) else base.existing_root(settings)
        self.root = redacted(str(self._local or root))  # for messages
        if self._local:
            self._fs: fs.FileSystem = fs.LocalFileSystem(use_mmap=True)
            return
        try:
            self._fs, self._path = fs.FileSystem.from_uri(root)
            kind = self._fs.get_file_info(self._path).type
        except (ValueError, OSError, ImportError) as error:
            what = " ".join(str(error).replace(str(root), self.root).split())
            raise DataError(f"data.root: {self.root}: {what}; give a folder, or a URI for pyarrow.fs") from None
        if kind != fs.FileType.Directory:
            raise DataError(f"data.root: {self.root}: no such folder; give data.root=FOLDER or a URI of one")

    def scan(self) -> Scan:
        """List the images; class names come from the metadata, from a string column, or from `data.class_names`."""
        found, left_out = self._found()
        files = list(found)
        if not files:
            raise DataError(f"{self.root}: no *.parquet file; give data.root=FOLDER or another data.name")
        splits = [_split(file) for file in files]
        if None in splits and any(splits):
            nameless = ", ".join(file for file, split in zip(files, splits, strict=True) if split is None)
            raise DataError(f"{self.root}: no split in the name of {nameless}; rename to train-, validation- or test-")
        columns = self._common_columns(files)
        table = pa.concat_tables(
            self._rows(file, split, columns, found[file]) for file, split in zip(files, splits, strict=True)
        ).combine_chunks()
        if not len(table):
            raise DataError(f"{self.root}: no images: all *.parquet files are empty")
        numbered, given = pa.types.is_integer(table["label"].type), columns.names or self.class_names
        if isinstance(given, Mapping):
            given = None
            if numbered:  # the mapping knows them by their digits; -1 stands for no label
                numbers = table["label"]
                digits = pc.if_else(pc.less(numbers, 0), None, numbers.cast(pa.string()))
                table = table.set_column(2, "label", digits)
        names, labels = self._encode(table, "label", given, sort=in_order)
        domains, domain_ids = self._encode(table, DOMAIN, columns.domain_names)
        rows = table.set_column(2, "label", labels).set_column(3, DOMAIN, domain_ids).cast(ROW_SCHEMA)
        local = self._local or (Path(self._path) if isinstance(self._fs, fs.LocalFileSystem) else None)
        return Scan(names, domains, rows, numbered, left_out, local)

    def read(self, rows: pa.Table) -> Iterator[Image.Image]:
        """Decode the images of `rows`, in order; a row group is read once per run of rows in it."""
        for file, run in groupby(zip(rows["file"].to_pylist(), rows["row"].to_pylist(), strict=True), itemgetter(0)):
            numbers = [row for _, row in run]
            for row, data in zip(numbers, self._values(file, numbers), strict=True):
                yield decode(data or b"", f"{self._where(file)}, row {row}")

    def _found(self) -> tuple[dict[str, tuple[int | None, ...]], Counter[str]]:
        """List the unhidden *.parquet, name below the root -> its columns `STATE`; count other files."""
        found: dict[str, tuple[int | None, ...]] = {}
        others: list[str] = []
        try:
            if self._local:
                files = list(files_below(self._local))
                found = {file: state(self._local / file) for file in files if _is_parquet(file)}
                linked = {os.path.realpath(self._local / file) for file in found}  # as in Hugging Face's cache
                others = [file for file in files if os.path.realpath(self._local / file) not in linked]
            else:
                for info in self._fs.get_file_info(fs.FileSelector(self._path, recursive=True)):
                    name = str(PurePosixPath(info.path).relative_to(self._path))
                    if info.type != fs.FileType.File or any(map(is_junk, name.split("/"))):
                        continue
                    if _is_parquet(name):
                        found[name] = info.size, info.mtime_ns, None
                    else:
                        others.append(name)
        except OSError as error:
            raise DataError(f"{self.root}: cannot be listed ({one_line(error)})") from None
        return {name: found[name] for name in sorted(found)}, Counter(map(kind, others))

    def _where(self, file: str) -> str:
        """Return the name of a file for messages."""
        return f"{self.root.rstrip('/')}/{file}"

    @contextmanager
    def _open(self, file: str) -> Iterator[pq.ParquetFile]:
        """Open a file for a `with` block, in which Arrow's errors become a `DataError`."""
        try:
            path = str(base.inside(self._local, file)) if self._local else f"{self._path}/{file}"
            with self._fs.open_input_file(path) as opened, pq.ParquetFile(opened) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as error:
            what = f"{self._where(file)}: not a complete Parquet file ({one_line(error)})"
            raise DataError(f"{what}; fetch it again") from error

    def _values(self, file: str, rows: list[int]) -> Iterator[bytes | None]:
        with self._open(file) as parquet:
            column = self._columns(file, parquet.schema_arrow).image
            metadata = parquet.metadata
            if max(rows) >= metadata.num_rows:
                raise DataError(f"{self._where(file)}: row {max(rows)} is missing; build the manifest again")
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            starts = list(accumulate(sizes, initial=0))
            groups = [bisect_right(starts, row) - 1 for row in rows]
            for group, members in groupby(zip(groups, rows, strict=True), itemgetter(0)):
                images = parquet.read_row_group(group, columns=[column]).column(0)
                for _, row in members:
                    value = images[row - starts[group]].as_py()
                    if isinstance(value, dict) and value["bytes"] is None and value.get("path"):
                        raise DataError(
                            f"{self._where(file)}, row {row}: only the path {value['path']!r}, not the image; save the "
                            "data with the images in them"
                        )
                    yield value["bytes"] if isinstance(value, dict) else value

    def _common_columns(self, files: list[str]) -> Columns:
        found = {}
        for file in files:
            with self._open(file) as parquet:
                found[file] = self._columns(file, parquet.schema_arrow)
        differing = ", ".join(file for file in files if found[file] != found[files[0]])
        if differing:
            raise DataError(f"{self.root}: columns or class names of {differing} differ from those of {files[0]}")
        return found[files[0]]

    def _columns(self, file: str, schema: pa.Schema) -> Columns:
        features = _features(schema)
        image = self._choose(file, "image", features, "Image", [f.name for f in schema if _holds_images(f.type)])
        plain = [f.name for f in schema if pa.types.is_integer(f.type) or _holds_text(f.type)]
        label = self._choose(file, "label", features, "ClassLabel", [name for name in plain if name != DOMAIN])
        domain = DOMAIN if DOMAIN in schema.names else None
        return Columns(image, label, domain, _names(features, label), _names(features, DOMAIN))

    def _choose(self, file: str, kind: str, features: dict[str, Any], feature: str, fitting: list[str]) -> str:
        """Choose a column: declared in the metadata, else the only one of a fitting type, else a preferred name."""
        declared = [name for name, value in features.items() if value.get("_type") == feature and name in fitting]
        candidates = declared or fitting
        preferred = [name for name in PREFERRED if name in candidates]
        if len(candidates) != 1 and not preferred:
            found = f"several could be it: {', '.join(candidates)}" if candidates else "none has a fitting type"
            raise DataError(f"{self._where(file)}: no {kind} column ({found}); call it {kind!r}")
        return preferred[0] if preferred else candidates[0]

    def _rows(self, file: str, split: str | None, columns: Columns, state: tuple[int | None, ...]) -> pa.Table:
        """Read the rows of one file, with label and domain as stored."""
        with self._open(file) as parquet:
            table = parquet.read(columns=[columns.label, *([columns.domain] if columns.domain else [])])
        count = len(table)
        rows = image_rows(count, file=file, row=np.arange(count), split=split, **dict(zip(STATE, state, strict=True)))
        domain = _plain(table[columns.domain]) if columns.domain else pa.repeat(SINGLE_DOMAIN, count)
        domain = domain if columns.domain_names else domain.cast(pa.string())
        return rows.set_column(2, "label", _plain(table[columns.label])).set_column(3, DOMAIN, domain)

    def _encode(
        self,
        table: pa.Table,
        column: str,
        names: tuple[str, ...] | None,
        sort: Callable[[Iterable[str]], Iterable[str]] = sorted,
    ) -> tuple[tuple[str, ...], pa.Array]:
        """Return the ordered names of a column and, per row, the index of its name."""
        values = table[column]
        if pa.types.is_string(values.type):
            found = values.drop_null().unique().to_pylist()
            names = tuple(sort(set(map(composed, found))))
            place = pa.array([names.index(composed(name)) for name in found], pa.int64())
            ids = pc.take(place, pc.index_in(values, pa.array(found, pa.string())))
            bad = pc.is_null(ids)
        elif names is None:
            raise DataError(
                f"{self.root}: column {column!r} holds numbers and the metadata no names; "
                "give data.class_names=[name of 0, name of 1, ...]"
            )
        else:
            ids = values
            bad = pc.fill_null(pc.or_(pc.less(ids, 0), pc.greater_equal(ids, len(names))), True)
        if pc.any(bad).as_py():
            row = table.slice(pc.index(bad, True).as_py(), 1).to_pylist()[0]
            wrong = f"{column} {row[column]} is out of range of the {len(names)} names, which count from 0"
            raise DataError(
                f"{self._where(row['file'])}, row {row['row']}: {f'no {column}' if row[column] is None else wrong} "
                f"({pc.sum(bad).as_py()} such rows); correct or remove them"
            )
        return names, ids.cast(pa.int32())


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _split(file: str) -> str | None:
    """Find the split in the name of the file or, failing that, of its nearest folder."""
    matches = (_SPLIT.search(part) for part in reversed(file.split("/")))
    return next((SPLIT_NAMES[match[1].lower()] for match in matches if match), None)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Read the Hugging Face features: column -> {"_type": "Image" | "ClassLabel" | ..., "names": [...]}."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: value for name, value in features.items() if isinstance(value, dict)}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


def _names(features: dict[str, Any], column: str) -> tuple[str, ...] | None:
    names = features.get(column, {}).get("names")
    return tuple(str(name) for name in names) if isinstance(names, list) else None


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast labels of any width or encoding to int64 or string."""
    return column.cast(pa.string() if _holds_text(column.type) else pa.int64())
