"""The compared features are equal, and the figures have their names."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpgp.bench import features as bench
from fedpgp.clip.feature_cache import FeatureCache
from fedpgp.core.errors import FedPGPError


def test_photos_are_files_of_a_data_set(workload, tmp_path):
    job = bench.photograph(tmp_path, 5, workload.backbone)
    assert len(job.manifest) == 5
    assert job.manifest.class_names == ("class 0", "class 1")
    (size,) = {image.size for image in bench.open_source(job.data).read(job.manifest.table)}
    assert size == bench.PHOTO_SIZE


def test_the_cache_must_equal_parquet_and_must_not_be_copied(tmp_path, monkeypatch):
    found = bench.reading(tmp_path, 1000)
    assert found.allocated < 10_000
    assert 0 < found.batch < found.batch_of_parquet
    gather = FeatureCache.gather
    monkeypatch.setattr(FeatureCache, "gather", lambda cache, rows, view=0: gather(cache, rows, view) + np.float32(1))
    with pytest.raises(FedPGPError, match="different features"):
        bench.reading(tmp_path, 1000)


@pytest.mark.slow
def test_figures(workload, ray_cluster):
    outcome = bench.measure(1, lambda what: None, workload.backbone, photos=10, rows=1000, repeats=1)
    figures = json.loads(outcome.as_json())
    assert figures["bench"] == "features"
    assert set(figures["figures"]) == {
        "extraction_fraction_of_tower", "two_actor_speedup", "open_milliseconds", "batch_read_ratio_to_parquet",
    }  # fmt: skip
    assert all(value > 0 for value in figures["figures"].values())
    assert [len(row) for row in outcome.rows] == [2] * 7
