"""Cache of frozen image features: each image is encoded once and stored in a file that all processes memory-map."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from fedpgp.core.errors import AccessError, CacheError, MissingCacheError
from fedpgp.core.files import TEMPORARY, access_errors, check_readable, durable_file, locked, make_folder
from fedpgp.core.text import first_of

Array = np.ndarray[Any, np.dtype[Any]]
Variant = Literal["pooled", "patches", "pixels"]

CHUNK_ROWS = 256
"""Images of a shard, at most one of which per worker is lost when an extraction is killed."""
BATCH_BYTES = 1 << 28
"""Approximate upper bound of a record batch in bytes. Opening costs 0.03 ms per batch; merging holds one in memory."""
FEATURE_TYPES = {"pooled": pa.float32(), "patches": pa.float32(), "pixels": pa.uint8()}
SHARDS = ".shards"
"""Suffix of the folder of shards beside an unfinished cache."""


@dataclass(frozen=True)
class FeatureKey:
    """Everything that features depend on: caches with equal keys hold equal features."""

    manifest: str  # identifies the images behind the row numbers: digest of their content, or of files and times
    weights: str  # fingerprint of the backbone
    transform: str  # digest of its `ImageSpec`
    views: int = 1  # 1: the evaluation transform; K > 1: K random-crop-and-flip views
    seed: int = 0  # seed of the views; 0 with one view, which is not random
    dtype: str = "float32"  # precision of the image tower; features are stored as float32 (pixels as uint8)
    variant: Variant = "pooled"  # (E,) | patches (1 + M, E), class token first | pixels (3, H, W), not normalized

    @property
    def digest(self) -> str:
        """16 hex digits over all fields."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


class FeatureCache:
    """Features of some rows of a manifest, memory-mapped; opening reads only the index."""

    def __init__(self, rows: Array, blocks: Sequence[Array]) -> None:
        """Use `open`. rows (n,) in the order of the blocks, each (n_b, views, *shape)."""
        self._order = np.argsort(rows, kind="stable")
        self.rows = rows[self._order]  # manifest rows, sorted, int64 (n,)
        self.shape: tuple[int, ...] = blocks[0].shape[2:]  # of the feature of one image and view
        self._blocks = blocks
        self._starts = np.cumsum([0, *(len(block) for block in blocks)])

    @classmethod
    def open(cls, path: Path, key: FeatureKey) -> FeatureCache:
        """Memory-map a cache; raise `CacheError` if it is missing or damaged, or belongs to another key."""
        table = _read(path, key)
        shape = _shape(table)
        blocks = [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), key.views, *shape)
            for chunk in table["feature"].chunks
        ]
        return cls(table["row"].to_numpy(), blocks)

    def gather(self, rows: Array, view: int = 0) -> Array:
        """Copy the features (n, *shape) of `rows` (n,); raise `CacheError` if they are missing or not finite."""
        rows = np.asarray(rows, dtype=np.int64)
        places = np.searchsorted(self.rows, rows)
        absent = np.unique(rows[self.rows[np.minimum(places, len(self.rows) - 1)] != rows])
        if absent.size:
            found = f"{absent.size} of {rows.size} images (rows {first_of(absent.tolist(), 5)})"
            raise CacheError(f"the feature cache lacks {found}; run `fedpgp features CONFIG` first")
        places = self._order[places]
        owners = np.searchsorted(self._starts, places, side="right") - 1
        features = np.empty((rows.size, *self.shape), dtype=self._blocks[0].dtype)
        for owner in np.unique(owners):
            mine = owners == owner
            features[mine] = self._blocks[owner][places[mine] - self._starts[owner], view]
        if features.dtype.kind == "f" and not np.isfinite(features).all():
            raise CacheError("the feature cache has values that are not finite; delete it and extract them again")
        return features


@dataclass(frozen=True)
class Chunk:
    """A unit of extraction: the images of `rows` (manifest rows, sorted) are written to one shard."""

    rows: Array
    shard: Path
    rotated: int = 0
    """how many images have an EXIF orientation, which is not applied; counted when they are encoded"""


def scan(folder: Path) -> tuple[list[tuple[int, int]], list[CacheError | AccessError]]:
    """Open every cache of a folder: images and bytes of the complete ones, and the errors of the others.

    Raises `AccessError` if this user may not read the folder.
    """
    check_readable(folder)
    complete: list[tuple[int, int]] = []
    errors: list[CacheError | AccessError] = []
    for path in sorted(folder.glob("[!.]*.arrow")):
        try:
            table = _read(path)
            digest = FeatureKey(**json.loads(table.schema.metadata[b"key"])).digest
            if path.stem != digest:
                raise CacheError(f"{path}: contains the features of {digest}, not of its name; delete it")
            complete.append((len(table), path.stat().st_size))
        except (CacheError, AccessError) as error:
            errors.append(error)
    return complete, errors


def cache_path(folder: Path, key: FeatureKey) -> Path:
    """Return the path of the cache of `key`."""
    return folder / f"{key.digest}.arrow"


def missing(path: Path, key: FeatureKey, rows: Array) -> Array:
    """Return the sorted rows that a cache does not hold yet; all of them if the file is missing."""
    check_readable(path)
    requested = np.unique(np.asarray(rows, dtype=np.int64))
    return np.setdiff1d(requested, FeatureCache.open(path, key).rows) if path.exists() else requested


def done_in_shards(path: Path, key: FeatureKey, rows: Array) -> int:
    """Count the `rows` in the shards of an interrupted extraction, which the next one will reuse."""
    held, folder = [], path.with_suffix(SHARDS)
    check_readable(folder)
    for shard in folder.glob("[!.]*.arrow"):
        with suppress(CacheError):  # damaged: will be extracted again
            held.append(_read(shard, key))
    return int(np.isin(rows, _rows(held)).sum())


def extract(
    folder: Path,
    key: FeatureKey,
    rows: Array,
    run_chunks: Callable[[list[Chunk]], Iterable[Chunk]],
    progress: Callable[[int, int], None],
) -> Path:
    """Encode the `rows` (n,) that the cache of `key` is missing, and return the cache's path.

    Finished shards survive a failure and are reused by the next call. Processes that extract the same cache wait for
    each other; if nothing is missing, the cache is only read.

    Args:
        run_chunks: writes the shard of each chunk (`Encoder.encode_chunk`) in any process, then yields the chunk
        progress: called with the numbers of finished and of all images

    Raises:
        CacheError: the existing file is damaged or belongs to another key.
        AccessError: this user may not read the existing file, or may not write to the folder.
    """
    path = cache_path(folder, key)
    shards = path.with_suffix(SHARDS)
    if not missing(path, key, rows).size:
        return path
    make_folder(folder)
    with locked(folder / f"{key.digest}.lock"), access_errors(folder):
        requested = missing(path, key, rows)
        if not requested.size:
            return path
        shards.mkdir(exist_ok=True)
        cached = [_read(path, key)] if path.exists() else []
        finished = _finished(shards, key, cached)
        todo = np.setdiff1d(requested, _rows(finished))
        done, total = requested.size - todo.size, requested.size
        progress(done, total)
        chunks = [
            Chunk(part, shards / f"{part[0]:09d}.arrow")
            for part in np.split(todo, range(CHUNK_ROWS, todo.size, CHUNK_ROWS))
            if part.size
        ]
        for chunk in run_chunks(chunks) if chunks else ():
            done += chunk.rows.size
            progress(done, total)
        _write(path, [*cached, *finished, *(_read(chunk.shard, key) for chunk in chunks)])
        shutil.rmtree(shards)
    return path


def write_shard(path: Path, key: FeatureKey, rows: Array, features: Array) -> None:
    """Write the features (n, views, *shape) of `rows` (n,) atomically."""
    flat = pa.array(np.ascontiguousarray(features).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, prod(features.shape[1:]))
    metadata = {"key": json.dumps(asdict(key)), "shape": json.dumps(features.shape[2:])}
    schema = pa.schema([("row", pa.int64()), ("feature", column.type)], metadata=metadata)
    _write(path, [pa.table([pa.array(rows, pa.int64()), column], schema=schema)])


def _write(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write the rows in few record batches, so that a cache of many shards opens as fast as one."""
    table = pa.concat_tables(tables)
    size = max(CHUNK_ROWS, BATCH_BYTES * len(table) // table.nbytes)
    with durable_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        for start in range(0, len(table), size):
            writer.write_table(table.slice(start, size).combine_chunks())


def _read(path: Path, key: FeatureKey | None = None) -> pa.Table:
    """Map a cache or shard, which must be complete and belong to `key` or, without one, to the key stored in it."""
    check_readable(path)
    if not path.is_file():
        raise MissingCacheError(str(path))
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        found = json.loads(table.schema.metadata[b"key"])
        key = key or FeatureKey(**found)
        table.validate()
        if (
            table.column_names != ["row", "feature"]
            or table["row"].type != pa.int64()
            or table["feature"].type != pa.list_(FEATURE_TYPES[key.variant], int(found["views"]) * prod(_shape(table)))
            or not len(table)
        ):
            raise ValueError("columns")
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        what = "damaged or incomplete feature cache; delete it and run `fedpgp features CONFIG` again"
        raise CacheError(f"{path}: {what}") from error
    requested = asdict(key)
    if found != requested:
        differing = sorted(name for name in found | requested if found.get(name) != requested.get(name))
        difference = ", ".join(f"{name} is {found.get(name)}, expected {requested.get(name)}" for name in differing)
        raise CacheError(f"{path}: features of another key ({difference}); delete it and run `fedpgp features CONFIG`")
    return table


def _shape(table: pa.Table) -> tuple[int, ...]:
    """Return the shape of the feature of one image and view."""
    return tuple(int(size) for size in json.loads(table.schema.metadata[b"shape"]))


def _finished(shards: Path, key: FeatureKey, cached: Sequence[pa.Table]) -> list[pa.Table]:
    """Read the shards of interrupted extractions; delete damaged ones and those that were merged already."""
    held, tables = _rows(cached), []
    for path in sorted(shards.iterdir()):
        table = None
        if not path.name.startswith(TEMPORARY):
            with suppress(CacheError):
                table = _read(path, key)
        if table is None or np.isin(_rows([table]), held).any():
            path.unlink()
        else:
            tables.append(table)
    return tables


def _rows(tables: Sequence[pa.Table]) -> Array:
    return np.concatenate([np.empty(0, np.int64), *(table["row"].to_numpy() for table in tables)])
