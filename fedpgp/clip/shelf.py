"""All feature caches of a folder, each opened as a run would open it, and what is wrong with those that cannot be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from fedpgp.clip.feature_cache import FeatureCache, FeatureKey
from fedpgp.core.errors import CacheError


@dataclass(frozen=True)
class CacheInfo:
    """A cache that is whole and lies under its own name."""

    path: Path
    key: FeatureKey
    images: int
    num_bytes: int


def look(folder: Path) -> tuple[list[CacheInfo], list[CacheError]]:
    """The caches of a folder and, for each that is torn or misnamed, the error; of a missing folder nothing."""
    whole, errors = [], []
    for path in sorted(folder.glob("[!.]*.arrow")):
        try:
            whole.append(_open(path))
        except CacheError as error:
            errors.append(error)
    return whole, errors


def _open(path: Path) -> CacheInfo:
    try:
        with pa.memory_map(str(path)) as file:
            key = FeatureKey(**json.loads(pa.ipc.open_file(file).schema.metadata[b"key"]))
    except (pa.ArrowException, OSError, TypeError, LookupError, ValueError) as error:
        raise CacheError(
            f"{path}: not a whole feature cache; delete it and run `fedpgp features CONFIG` again"
        ) from error
    if path.stem != key.digest:
        raise CacheError(f"{path}: holds the features of {key.digest}, not of what it is named after; delete it")
    return CacheInfo(path, key, len(FeatureCache.open(path, key).rows), path.stat().st_size)
