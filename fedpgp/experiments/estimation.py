"""What a plan will take, told before it is run: images to encode, bytes, time, and the memory of an actor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from fedpgp.clip.feature_cache import Chunk, FeatureCache, write_shard
from fedpgp.experiments.planning import Plan
from fedpgp.experiments.runner import extraction_job, make_job, wanted_features
from fedpgp.federation import extraction
from fedpgp.federation.backends.serial import SerialBackend
from fedpgp.federation.extraction import Forecast
from fedpgp.federation.messages import Features
from fedpgp.federation.server import Server


def forecast(plan: Plan) -> list[Forecast]:
    """What the extraction of its features would take, from a few images encoded in this process; nothing is kept."""
    backend = _backend(plan)
    try:
        return [
            extraction.forecast(extraction_job(plan, cache), cache.path, rows, backend)
            for cache, (_, rows) in wanted_features([plan]).items()
        ]
    finally:
        backend.close()


def memory(plan: Plan) -> int | None:
    """Bytes that an actor needs to train a block, as one step in this process shows; None: there is nothing to train.

    It takes no features: the first image of the first client is encoded, and stands for all its images.
    """
    if not plan.method.phases:
        return None
    train, rows = next(iter(wanted_features([plan]))), plan.data.train_rows[0]
    backend = _backend(plan)
    try:
        with tempfile.TemporaryDirectory() as folder:
            backend.load(extraction_job(plan, train))
            (chunk,) = backend.map("encode_chunk", [Chunk(rows[:1], Path(folder) / "one.arrow")])
            one = FeatureCache.open(chunk.shard, train.key).gather(rows[:1])
            alike = Features(Path(folder) / "alike.arrow", train.key)
            write_shard(alike.path, train.key, rows, np.broadcast_to(one, (len(rows), train.key.views, *one.shape[1:])))
            job = make_job(plan, alike, alike)
            backend.load(job)
            server = Server(job, backend)
            return server.memory(server.initial_state())
    finally:
        backend.close()


def _backend(plan: Plan) -> SerialBackend:
    resources = plan.experiment.resources
    return SerialBackend(resources.threads, gpu=resources.gpus_per_actor > 0)
