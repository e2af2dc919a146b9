"""Extract the frozen features that plans need: each image once, on workers, or here if it is little work."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedpgp.clip import feature_cache
from fedpgp.clip.feature_cache import Chunk, FeatureKey, cache_path
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.text import redacted
from fedpgp.experiments.planning import Plan
from fedpgp.federation.backends.base import Backend, SerialBackend
from fedpgp.federation.extraction import ExtractionJob
from fedpgp.federation.messages import Features


def extract(plan: Plan, backend: Backend, callback: RunCallback) -> tuple[Features, Features]:
    """Extract the missing frozen features of a plan; return those for training and those for testing.

    With one view both are the same cache.
    """
    extract_all([plan], backend, callback)
    return _cache(plan, plan.experiment.data.views), _cache(plan, views=1)


def extract_all(plans: Iterable[Plan], backend: Backend, callback: RunCallback) -> list[Path]:
    """Extract the missing frozen features of several plans, each image once; return the cache files."""
    required = required_features(plans)
    for cache, (one, rows) in required.items():
        _fill(one, cache, rows, backend, callback)
    return sorted(cache.path for cache in required)


def missing_chunks(plans: Iterable[Plan]) -> int:
    """How many chunks of images `extract_all` can encode at the same time."""
    required = required_features(plans).items()
    sizes = [feature_cache.missing(cache.path, cache.key, rows).size for cache, (_, rows) in required]
    return max((-(-size // feature_cache.CHUNK_ROWS) for size in sizes), default=0)


def required_features(plans: Iterable[Plan]) -> dict[Features, tuple[Plan, np.ndarray]]:
    """Map each cache that the plans need to a plan that can fill it and the manifest rows it must hold."""
    required: dict[Features, tuple[Plan, np.ndarray]] = {}
    for one in plans:
        if (views := one.experiment.data.views) == 1:
            caches = [(_cache(one, 1), one.data.rows)]
        else:
            caches = [(_cache(one, views), one.data.training_rows), (_cache(one, 1), one.data.evaluation_rows)]
        for cache, rows in caches:
            first, known = required.get(cache, (one, rows))
            required[cache] = (first, np.union1d(known, rows))
    return required


def _cache(plan: Plan, views: int) -> Features:
    experiment = plan.experiment
    code = plan.plugins.get("data", {}).get("digest")  # it may decode images in its own way
    key = FeatureKey(
        manifest="-".join(filter(None, (plan.content or plan.manifest.files_digest, code))),
        weights=plan.weights,
        transform=plan.image.digest,
        views=views,
        seed=0 if views == 1 else experiment.seed,
        dtype=experiment.backbone.dtype,
        variant=plan.method.image_inputs,
    )
    return Features(cache_path(experiment.storage.root.absolute() / "features", key), key)


def extraction_job(plan: Plan, cache: Features) -> ExtractionJob:
    """Build the job with which workers fill a cache of the plan."""
    visual: Any = plan.backbone.model.visual if plan.backbone else nn.Identity()
    return ExtractionJob(visual, plan.image, plan.experiment.data, plan.manifest, cache.key)


def _fill(plan: Plan, cache: Features, rows: np.ndarray, backend: Backend, callback: RunCallback) -> None:
    """Extract the missing ones of `rows` on the workers, or here if they are one chunk, which one worker would encode.

    Workers would have to load the image libraries first. With GPUs it takes one of them, so that the bits are theirs.
    """
    resources = plan.experiment.resources
    begun: list[tuple[float, int]] = []
    rotated = 0

    def run_chunks(chunks: list[Chunk]) -> Iterator[Chunk]:
        nonlocal rotated
        here = len(chunks) == 1 and not resources.gpus_per_actor
        with closing(SerialBackend(resources.threads)) if here else nullcontext(backend) as workers:
            workers.load(extraction_job(plan, cache))
            for chunk in workers.map("encode_chunk", chunks):
                rotated += chunk.rotated
                yield chunk

    def progress(done: int, total: int) -> None:
        """Report the rate since the start, without images of an earlier, interrupted extraction."""
        begun.append((time.monotonic(), done))
        (start, first), (now, _) = begun[0], begun[-1]
        callback.on_extract(done, total, (done - first) / (now - start) if done > first else None)

    feature_cache.extract(cache.path.parent, cache.key, rows, run_chunks, progress)
    if rotated:
        data = plan.experiment.data
        callback.on_message(
            f"{redacted(str(data.root or data.name))}: images with an EXIF orientation, used as stored (not rotated): "
            f"{rotated} of {len(rows)}; `fedpgp data check` lists them",
            warning=True,
        )
