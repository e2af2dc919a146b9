"""What an actor does before training: read and encode a chunk of images into a shard of the feature cache."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedpgp.clip.feature_cache import Array, Chunk, FeatureCache, FeatureKey, done_in_shards, missing
from fedpgp.clip.images import Encoder
from fedpgp.clip.model import ImageSpec
from fedpgp.config import DataSettings
from fedpgp.data.manifest import Manifest, open_reader
from fedpgp.federation.backends.allocator import keep_freed_memory
from fedpgp.federation.backends.base import Backend

SAMPLE = 16
"""Images that are encoded to forecast the time of all."""


@dataclass(frozen=True)
class ExtractionJob:
    """The frozen image tower and where the images are."""

    visual: nn.Module
    image: ImageSpec
    data: DataSettings
    manifest: Manifest
    key: FeatureKey

    def build(self, device: torch.device) -> ExtractionWorker:
        """The worker, with a reader of its own."""
        return ExtractionWorker(self, device)


class ExtractionWorker:
    """Serves any chunk at any time."""

    def __init__(self, job: ExtractionJob, device: torch.device) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self._table = job.manifest.table
        self._encoder = Encoder(job.visual.to(device), job.image, open_reader(job.data), job.key)

    def encode_chunk(self, chunk: Chunk) -> Chunk:
        """Write the chunk's shard; the chunk itself comes back as the receipt.

        Raises:
            DataError: an image cannot be read.
        """
        self._encoder.encode_chunk(self._table.take(chunk.rows), chunk.rows, chunk.shard)
        return chunk


@dataclass(frozen=True)
class Forecast:
    """What the extraction of a cache would take."""

    path: Path
    """the cache"""
    present: int
    """images that are there already, in the cache or in shards of an interrupted extraction"""
    images: int
    """images that are left to encode"""
    num_bytes: int
    """what they add to the disk"""
    seconds_per_image: float
    """all its views, in one worker"""
    sample: int
    """images that this was measured on"""


def forecast(job: ExtractionJob, path: Path, rows: Array, backend: Backend) -> Forecast:
    """Measure a few of the images that are left, read, decoded and encoded as all would be; nothing is kept of them.

    Args:
        rows: manifest rows that the cache must hold.
        backend: a worker like those of the extraction.

    Raises:
        CacheError: the existing cache is torn or of something else.
        DataError: an image cannot be read.
    """
    todo = missing(path, job.key, rows)
    left = todo.size - done_in_shards(path, job.key, todo)
    present = len(rows) - left
    if not left:
        return Forecast(path, present, 0, 0, 0.0, 0)
    sample = todo[:SAMPLE]
    backend.load(job)
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("warm-up", "measured"):
            chunk, start = Chunk(sample, Path(folder) / turn), time.perf_counter()
            list(backend.map("encode_chunk", [chunk]))
            taken = time.perf_counter() - start
        one = FeatureCache.open(chunk.shard, job.key).gather(sample[:1])
    num_bytes = left * (one.nbytes * job.key.views + todo.itemsize)
    return Forecast(path, present, left, num_bytes, taken / len(sample), len(sample))
