"""Which experiments `resources.backend=auto` runs on Ray: those with several blocks of clients or chunks of images."""

from __future__ import annotations

import os

import pytest
import ray

from fedpgp import config
from fedpgp.clip import feature_cache
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.experiments import launch, placement, planning
from fedpgp.experiments.tracker import Tracker
from fedpgp.storage.run_folder import RunFolder

TREE = {
    "name": "small", "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"shots": 1}, "partition": {"clients": 5}, "method": {"name": "promptfl", "n_ctx": 2},
    "federation": {"rounds": 1, "batch_size": 4, "local_epochs": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _two_cores_no_cluster_and_one_chunk(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 10_000)


def settings(root, *overrides):
    return config.parse(config.override({**TREE, "storage": {"root": str(root)}}, overrides))


def choices(wanted):
    """What is chosen before planning, with the plan, and as a trial."""
    before = placement.before_planning(*planning.settle(wanted)).resources
    plan = planning.plan(wanted)
    of_run, (of_trial,) = placement.of_run(plan, RunCallback()), placement.of_trial([plan])
    return [one.backend for one in (before, of_run.experiment.resources, of_trial.experiment.resources)]


def test_blocks_of_clients_decide(tmp_path):
    assert choices(settings(tmp_path)) == ["serial"] * 3
    assert choices(settings(tmp_path, "federation.block_size=2")) == ["ray"] * 3
    assert choices(settings(tmp_path, "federation.block_size=2", "method={name: zero_shot}")) == ["serial"] * 3


def test_clients_that_the_data_determine_are_counted_by_the_plan(tmp_path):
    given = ["partition={scheme: domain, clients: null}", "federation.block_size=1", "protocol.name=all_classes"]
    assert choices(settings(tmp_path, *given)) == ["serial", "ray", "ray"]


def test_several_chunks_of_images_are_for_ray_but_not_in_a_trial(tmp_path, monkeypatch):
    """Their features are extracted before the trials."""
    monkeypatch.setattr(feature_cache, "CHUNK_ROWS", 64)
    assert choices(settings(tmp_path)) == ["serial", "ray", "serial"]


def test_a_run_says_which_and_records_it(tmp_path):
    events, wanted = [], settings(tmp_path)
    store = RunFolder.open(launch.run(wanted, False, EventStream(events.append), Tracker()))
    line = "resources.backend=auto: serial (a second actor would wait for the first)"
    assert [event.arguments for event in events if event.method == "on_message"] == [(line, False)]
    assert "backend: serial\n" in store.config_yaml
    named = settings(tmp_path, "resources.backend=serial")
    assert config.digest(named) == config.digest(wanted)
    assert launch.run(named, True, RunCallback(), Tracker()) == store.path  # finished: it is the same run
