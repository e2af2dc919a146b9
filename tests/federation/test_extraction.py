"""Feature extraction: its forecast is exact, and an interrupted one continues from its shards to the same bits."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from torch import nn

from fedpgp.clip import feature_cache
from fedpgp.clip.feature_cache import FeatureCache, FeatureKey, cache_path, extract
from fedpgp.clip.model import load
from fedpgp.config import BackboneSettings, DataSettings
from fedpgp.core.errors import Interrupted
from fedpgp.data import manifest
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.extraction import SAMPLE, ExtractionJob, forecast

ROWS = np.arange(20, 50)


@pytest.fixture(scope="module")
def job():
    backbone, data = load(BackboneSettings(name="tiny", weights="random")), DataSettings(name="shapes", views=3)
    built = manifest.build(data)
    key = FeatureKey(built.files_digest, backbone.fingerprint, backbone.image.digest, views=3)
    return ExtractionJob(backbone.model.visual, backbone.image, data, built, key)


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def backend(stop):
    backend = SerialBackend(1, stop=stop)
    yield backend
    backend.close()


@pytest.fixture
def run(job, backend, monkeypatch):
    """Extract ROWS into a folder, eight images a shard; returns the reported numbers of images done."""
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 8)

    def run(folder, watch=lambda done: None):
        reported = []

        def progress(done, total):
            reported.append(done)
            assert total == len(ROWS)
            watch(done)

        def run_chunks(chunks):
            backend.load(job)
            return backend.map("encode_chunk", chunks)

        extract(folder, job.key, ROWS, run_chunks, progress)
        return reported

    return run


def test_a_forecast_writes_nothing_and_predicts_what_extraction_writes(job, backend, run, tmp_path):
    path = cache_path(tmp_path, job.key)
    estimate = forecast(job, path, ROWS, backend)
    assert (estimate.path, estimate.present, estimate.images, estimate.sample) == (path, 0, 30, SAMPLE)
    assert estimate.seconds_per_image > 0
    assert list(tmp_path.iterdir()) == []
    run(tmp_path)
    assert estimate.num_bytes == 30 * (3 * 64 * 4 + 8)
    assert estimate.num_bytes < path.stat().st_size < estimate.num_bytes + 5000
    done = forecast(job, path, ROWS, backend)
    assert (done.present, done.images, done.num_bytes, done.seconds_per_image) == (30, 0, 0, 0)


def test_a_stopped_extraction_continues_from_its_shards(job, backend, run, stop, tmp_path):
    """Stopped when 16 of 30 are done; a torn shard does not count."""
    assert run(tmp_path / "whole") == [0, 8, 16, 24, 30]
    with pytest.raises(Interrupted):
        run(tmp_path / "halved", lambda done: done == 16 and stop.set())
    stop.clear()
    path = cache_path(tmp_path / "halved", job.key)
    (path.with_suffix(feature_cache.SHARDS) / "000000099.arrow").write_bytes(b"torn")
    estimate = forecast(job, path, ROWS, backend)
    assert (estimate.present, estimate.images) == (16, 14)
    assert run(tmp_path / "halved") == [16, 24, 30]
    whole, halved = (
        FeatureCache.open(cache_path(tmp_path / folder, job.key), job.key) for folder in ("whole", "halved")
    )
    for view in range(3):
        assert np.array_equal(whole.gather(ROWS, view), halved.gather(ROWS, view))


def test_pixels_need_no_tower(job, backend, tmp_path):
    """32 x 32 pixels of three colours, a byte each, in three views."""
    pixels = ExtractionJob(
        nn.Identity(), job.image, job.data, job.manifest, FeatureKey("m", "none", "t", views=3, variant="pixels")
    )
    estimate = forecast(pixels, cache_path(tmp_path, pixels.key), ROWS[:4], backend)
    assert (estimate.num_bytes, estimate.sample) == (4 * (3 * 3 * 32 * 32 + 8), 4)
