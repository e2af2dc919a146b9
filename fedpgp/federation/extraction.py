"""What an actor does before training: read and encode a chunk of images into a shard of the feature cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fedpgp.clip.features import Chunk, FeatureKey
from fedpgp.clip.images import Encoder
from fedpgp.clip.model import ImageSpec
from fedpgp.config import DataSettings
from fedpgp.data.manifest import Manifest, open_reader


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
        self._table = job.manifest.table
        self._encoder = Encoder(job.visual.to(device), job.image, open_reader(job.data), job.key)

    def encode_chunk(self, chunk: Chunk) -> Chunk:
        """Write the chunk's shard; the chunk itself comes back as the receipt.

        Raises:
            DataError: an image cannot be read.
        """
        self._encoder.encode_chunk(self._table.take(chunk.rows), chunk.rows, chunk.shard)
        return chunk
