"""One chunk of images is encoded by the process that plans, to the bits of the workers; more are theirs."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from fedpgp import config
from fedpgp.clip import feature_cache
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import features, planning
from fedpgp.experiments.runner import make_backend
from fedpgp.federation.backends.actors import ActorPool

TREE = {
    "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"}, "protocol": {"shots": 1},
    "partition": {"clients": 2}, "method": {"name": "promptfl", "n_ctx": 2}, "resources": {"backend": "ray"},
}  # fmt: skip


class Watched:
    """Workers that note what is asked of them."""

    def __init__(self, backend):
        self.backend, self.calls = backend, []

    def load(self, job):
        self.backend.load(job)

    def map(self, method, calls, common=None, work=()):
        self.calls += calls
        return self.backend.map(method, calls, common, work)


def plan_in(root, *overrides):
    return planning.plan(config.parse(config.override({**TREE, "storage": {"root": str(root)}}, overrides)))


@pytest.fixture(scope="module")
def pool(ray_cluster):
    with closing(ActorPool(config.ResourceSettings(actors=2))) as pool:
        yield pool


def extracted(plan, workers):
    (path,) = features.extract_all([plan], workers, RunCallback())
    return path.read_bytes()


def test_one_chunk_is_encoded_here_and_has_the_bits_of_an_actor(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 10_000)
    workers = Watched(pool)
    here = extracted(plan_in(tmp_path / "here"), workers)
    assert workers.calls == []
    monkeypatch.setattr(features, "SerialBackend", lambda threads: Borrowed(workers))
    assert extracted(plan_in(tmp_path / "there"), workers) == here
    assert len(workers.calls) == 1


class Borrowed:
    """The actors in place of this process."""

    def __init__(self, workers):
        self.load, self.map = workers.load, workers.map

    def close(self):
        """They stay open."""


def test_more_chunks_are_for_the_workers_with_the_same_features(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 700)
    plans = [plan_in(tmp_path / name) for name in ("actors", "serial")]
    workers = Watched(pool)
    by_actors = extracted(plans[0], workers)
    assert len(workers.calls) == features.missing_chunks([plans[1]]) > 1
    assert features.missing_chunks([plans[0]]) == 0
    serial = plans[1].experiment.resources.model_copy(update={"backend": "serial"})
    with closing(make_backend(serial, threading.Event())) as backend:
        assert extracted(plans[1], backend) == by_actors


def test_with_gpus_even_one_chunk_is_for_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 10_000)
    with closing(make_backend(config.ResourceSettings(backend="serial"), threading.Event())) as backend:
        workers = Watched(backend)
        extracted(plan_in(tmp_path, "resources.gpus_per_actor=0.5"), workers)
    assert len(workers.calls) == 1
