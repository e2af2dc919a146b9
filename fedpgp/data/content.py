"""A digest of the images behind a manifest: the bytes of their files, each hashed once for a storage root."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.core.errors import AccessError, DataError
from fedpgp.core.files import make_folder, share_with_group, write_durably
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources.base import STATE
from fedpgp.data.sources.union import SEPARATOR

FOLDER = "content"
"""Folder of the indexes in a storage root."""
HASH_BYTES = 16
INDEX_SCHEMA = pa.schema(
    [("file", pa.string()), *((name, pa.int64()) for name in STATE), ("hash", pa.binary(HASH_BYTES))]
)
"""One row per file. A file is hashed again once its size or one of its times differs."""
RECENT_NS = 2_000_000_000
"""A file changed less than this before it was hashed is not kept: it could change again without another time."""
THREADS, FILES_PER_TASK = 8, 64


def digest(manifest: Manifest, root: Path) -> str | None:
    """Hash the files that the storage root `root` does not know, keep their hashes there, and return `Hashes.digest`.

    Raises:
        DataError: a file cannot be read.
    """
    hashes = of(manifest, root)
    hashes.fill()
    hashes.save()
    return hashes.digest


def of(manifest: Manifest, root: Path) -> Hashes | UnionHashes:
    """The hashes of the files of a manifest."""
    return UnionHashes(manifest, root) if manifest.parts else Hashes(manifest, root)


class Hashes:
    """The hashes of the files of a manifest: those that a storage root knows of earlier calls, and then all others.

    The manifest says how each file was when it was listed. Files that are not on this machine are not hashed.
    """

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self._manifest, self._began = manifest, time.time_ns()
        rows = np.flatnonzero(pc.is_valid(manifest.table["size"]).to_numpy())
        table = manifest.table.take(pa.array(rows)).combine_chunks()
        files = table["file"].combine_chunks().dictionary_encode()
        self._rows, self._of_row = table["row"], files.indices.to_numpy()
        at = np.unique(self._of_row, return_index=True)[1]
        self._first = rows[at]  # the first row of each file
        self._files, self._states = files.dictionary, _states(table)[at]
        self._hashes = np.zeros((len(at), HASH_BYTES), np.uint8)
        self._missing = np.full(len(at), manifest.root is not None)
        name = hashlib.sha256(f"{manifest.name}\0{manifest.root}".encode()).hexdigest()[:16]
        self._path = root / FOLDER / f"{name}.arrow"
        self._index = _read(self._path)
        if manifest.root is not None:
            for number in np.flatnonzero(self._states[:, -1] < 0).tolist():  # a source from outside the package
                with suppress(OSError):  # `fill` raises it
                    self._states[number] = _state(os.stat(self._where(number)))
            places = pc.index_in(self._files, self._index["file"]).fill_null(-1).to_numpy()
            listed = np.flatnonzero(places >= 0)
            known = listed[(_states(self._index)[places[listed]] == self._states[listed]).all(axis=1)]
            stored = np.frombuffer(self._index["hash"].combine_chunks().buffers()[1], np.uint8)
            self._hashes[known] = stored.reshape(-1, HASH_BYTES)[places[known]]
            self._missing[known] = False

    @property
    def has_files(self) -> bool:
        """Whether images are files; others are drawn, or read by a source that does not say where."""
        return len(self._files) > 0

    @property
    def digest(self) -> str | None:
        """Sixteen hex digits over the content of the images in canonical order; None: no file, or one is not hashed.

        It is equal for copies of the data and differs once an image is replaced, whatever its size and times. Files
        that are not on this machine are identified by `Manifest.files_digest`, that is by name, size and time.
        """
        if not self.has_files or self._missing.any():
            return None
        if self._manifest.root is None:
            return self._manifest.files_digest
        content = hashlib.sha256(self._hashes[self._of_row].tobytes())
        content.update(pc.fill_null(self._rows, -1).to_numpy().astype("<i8").tobytes())
        return content.hexdigest()[:16]

    def fill(self, rows: int | None = None) -> None:
        """Hash the missing files, or those of the first `rows` images; raise `DataError` if one cannot be read."""
        missing = np.flatnonzero(self._missing & (self._first < (len(self._manifest) if rows is None else rows)))
        tasks = [missing[start : start + FILES_PER_TASK] for start in range(0, len(missing), FILES_PER_TASK)]
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in threads.map(self._hash, tasks):
                pass

    def save(self) -> None:
        """Keep what is known in the storage root, if it may be written; else the next call hashes the files again."""
        settled = ~self._missing & (self._states[:, -1] < self._began - RECENT_NS)
        hashes = pa.py_buffer(np.ascontiguousarray(self._hashes[settled]))
        columns = [self._files.filter(pa.array(settled)), *map(pa.array, self._states[settled].T)]
        columns.append(pa.Array.from_buffers(pa.binary(HASH_BYTES), int(settled.sum()), [None, hashes]))
        table = pa.table(columns, INDEX_SCHEMA)
        if self._manifest.root is not None and table != self._index:
            content = io.BytesIO()
            with pa.ipc.new_file(content, INDEX_SCHEMA) as writer:
                writer.write_table(table)
            with suppress(OSError, AccessError):
                make_folder(self._path.parent)
                share_with_group(self._path.parent)
                write_durably(self._path, content.getvalue())

    def _where(self, number: int) -> str:
        return os.path.join(str(self._manifest.root), self._files[number].as_py())

    def _hash(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            try:
                with open(self._where(number), "rb") as file:
                    state = _state(os.fstat(file.fileno()))
                    content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).digest()
            except OSError as error:
                raise DataError(
                    f"{self._where(number)}: cannot be read ({error.strerror}); repair or remove it"
                ) from None
            self._states[number], self._hashes[number] = state, np.frombuffer(content, np.uint8)
            self._missing[number] = False


class UnionHashes:
    """The hashes of the files of a union: those of its parts. The members are those of `Hashes`."""

    def __init__(self, manifest: Manifest, root: Path) -> None:
        parts = sorted(manifest.parts, key=lambda part: f"{part.name}{SEPARATOR}")  # the order of the rows
        self._parts = {part.name: Hashes(part, root) for part in parts}
        self._lengths = {part.name: len(part) for part in parts}

    @property
    def digest(self) -> str | None:
        """Sixteen hex digits over those of the parts with files; None: no part has any, or a file is not hashed."""
        found = {title: part.digest for title, part in self._parts.items() if part.has_files}
        return (
            None if not found or None in found.values() else hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
        )

    def fill(self, rows: int | None = None) -> None:
        """See `Hashes.fill`."""
        for title, part in self._parts.items():
            part.fill(rows)
            if rows is not None and (rows := rows - self._lengths[title]) <= 0:
                return

    def save(self) -> None:
        """See `Hashes.save`."""
        for part in self._parts.values():
            part.save()


def _state(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _states(table: pa.Table) -> np.ndarray:
    """The state of each row; -1 for what is not known. int64 [n, 3]"""
    return np.stack([pc.fill_null(table[name], -1).to_numpy() for name in STATE], axis=1)


def _read(index: Path) -> pa.Table:
    """Read an index; empty if it is missing or damaged."""
    try:
        table = pa.ipc.open_file(index.read_bytes()).read_all()
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException):
        return INDEX_SCHEMA.empty_table()
    intact = table.schema == INDEX_SCHEMA and not any(column.null_count for column in table.columns)
    return table if intact else INDEX_SCHEMA.empty_table()
