"""Feature extraction in a worker: encodes chunks of images into shards of the feature cache."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fedpgp.clip.feature_cache import Array, Chunk, FeatureCache, FeatureKey, done_in_shards, missing
from fedpgp.clip.images import Encoder
from fedpgp.clip.model import ImageSpec
from fedpgp.config import DataSettings
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import open_source
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.resources import keep_freed_memory

SAMPLE = 16  # images that are encoded to forecast the total time


@dataclass(frozen=True)
class ExtractionJob:
    """The frozen image tower and the source of the images."""

    visual: nn.Module
    image: ImageSpec
    data: DataSettings
    manifest: Manifest
    key: FeatureKey

    def build(self, device: torch.device) -> ExtractionWorker:
        """Create the worker, with its own reader."""
        return ExtractionWorker(self, device)


class ExtractionWorker:
    """Encodes any chunk."""

    def __init__(self, job: ExtractionJob, device: torch.device) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self._table = job.manifest.table
        self._encoder = Encoder(job.visual.to(device), job.image, open_source(job.data), job.key)

    def encode_chunk(self, chunk: Chunk) -> Chunk:
        """Write the shard of a chunk; return it with `rotated`; raise `DataError` if an image cannot be read."""
        rotated = self._encoder.encode_chunk(self._table.take(chunk.rows), chunk.rows, chunk.shard)
        return replace(chunk, rotated=rotated)


@dataclass(frozen=True)
class Forecast:
    """Estimated time and space of extracting a cache."""

    path: Path  # the cache
    present: int  # images that exist already, in the cache or in shards of an interrupted extraction
    images: int  # images still to encode
    num_bytes: int  # disk space that they need
    seconds_per_image: float  # for all views of an image, in one worker
    sample: int  # images that were measured


def forecast(job: ExtractionJob, path: Path, rows: Array, backend: Backend) -> Forecast:
    """Measure the extraction of a few missing images: reading, decoding and encoding. Nothing is kept.

    `rows` are the manifest rows that the cache must contain; `backend` has a worker like those of the extraction.
    Raises `CacheError` if the existing cache is damaged or another's, `DataError` if an image cannot be read.
    """
    todo = missing(path, job.key, rows)
    remaining = todo.size - done_in_shards(path, job.key, todo)
    present = len(rows) - remaining
    if not remaining:
        return Forecast(path, present, 0, 0, 0.0, 0)
    sample = todo[:SAMPLE]
    backend.load(job)
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("warm-up", "measured"):
            chunk, start = Chunk(sample, Path(folder) / turn), time.perf_counter()
            list(backend.map("encode_chunk", [chunk]))
            seconds = time.perf_counter() - start
        one = FeatureCache.open(chunk.shard, job.key).gather(sample[:1])
    num_bytes = remaining * (one.nbytes * job.key.views + todo.itemsize)
    return Forecast(path, present, remaining, num_bytes, seconds / len(sample), len(sample))
