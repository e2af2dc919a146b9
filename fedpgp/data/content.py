"""A digest of the images behind a manifest: the bytes of their files, each hashed once for a storage root."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.core.errors import DataError
from fedpgp.core.files import write_durably
from fedpgp.data.manifest import Manifest

FOLDER = "content"
"""Folder of the indexes in a storage root."""
INDEX_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),  # when the content was last written, in ns since 1970
        ("changed", pa.int64()),  # when content, times or name were last changed: no program can set this time
        ("hash", pa.binary(16)),
    ]
)
"""One row per file. A file is hashed again once its size or one of its times differs."""
RECENT_NS = 2_000_000_000
"""A file changed less than this before it was hashed is not kept: it could change again without another time."""
HASH_BYTES = 16
THREADS, FILES_PER_TASK = 8, 64


class Hashed(NamedTuple):
    """State and hash of a file, a row of `INDEX_SCHEMA` without its name."""

    size: int
    modified: int
    changed: int
    hash: bytes


def digest(manifest: Manifest, root: Path, keep: bool = True) -> str | None:
    """Sixteen hex digits over the content of the images in canonical order; None if none of them is a file.

    It is equal for copies of the data and differs once an image is replaced, whatever its size and times. Files that
    are not on this machine are identified by `Manifest.files_digest`, that is by name, size and time.

    Args:
        root: storage root with the hashes of earlier calls.
        keep: write new hashes there.

    Raises:
        DataError: a file cannot be read.
    """
    table = manifest.table.filter(pc.is_valid(manifest.table["size"]))
    if not len(table):
        return None
    if manifest.root is None:
        return manifest.files_digest
    files = table["file"].to_pylist()
    name = hashlib.sha256(f"{manifest.name}\0{manifest.root}".encode()).hexdigest()[:16]
    found = _hashed(manifest.root, list(dict.fromkeys(files)), root / FOLDER / f"{name}.arrow", keep)
    content = hashlib.sha256(b"".join(found[file].hash for file in files))
    content.update(pc.fill_null(table["row"], -1).to_numpy().astype("<i8").tobytes())
    return content.hexdigest()[:16]


def _hashed(root: Path, files: Sequence[str], index: Path, keep: bool) -> dict[str, Hashed]:
    """Hash the files that the index does not have as they are now."""
    known, began = _read(index), time.time_ns()

    def task(names: Sequence[str]) -> list[Hashed]:
        return [_hash(root / name, known.get(name)) for name in names]

    tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    with ThreadPoolExecutor(THREADS) as threads:
        found = dict(zip(files, chain.from_iterable(threads.map(task, tasks)), strict=True))
    settled = {name: one for name, one in found.items() if one.changed < began - RECENT_NS}
    if keep and settled != known:
        with suppress(OSError):  # without an index, the next call hashes the files again
            _write(index, settled)
    return found


def _hash(path: Path, known: Hashed | None) -> Hashed:
    try:
        stat = path.stat()
        state = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        if known is not None and known[:3] == state:
            return known
        with path.open("rb") as file:
            content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); repair or remove it") from None
    return Hashed(*state, content.digest())


def _read(index: Path) -> dict[str, Hashed]:
    """Read an index; empty if it is missing or damaged."""
    try:
        with pa.memory_map(str(index)) as file:
            table = pa.ipc.open_file(file).read_all()
            table.validate(full=True)
            intact = table.schema == INDEX_SCHEMA and not any(column.null_count for column in table.columns)
            names, *columns = (column.to_pylist() for column in table.columns)
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return dict(zip(names, map(Hashed, *columns), strict=True)) if intact else {}


def _write(index: Path, found: Mapping[str, Hashed]) -> None:
    rows = [dict(zip(INDEX_SCHEMA.names, (name, *one), strict=True)) for name, one in found.items()]
    content = io.BytesIO()
    with pa.ipc.new_file(content, INDEX_SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA))
    index.parent.mkdir(parents=True, exist_ok=True)
    write_durably(index, content.getvalue())
