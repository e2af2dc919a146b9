"""A cluster of several nodes on this machine: one is lost in the middle of a round, and nothing changes."""

from __future__ import annotations

import sys
import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from fedpgp import config
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import ResourceError
from fedpgp.experiments import launch, runner
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends import driver
from fedpgp.storage.run_folder import RunFolder

pytestmark = pytest.mark.slow
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def nodes():
    """A head without room for actors and three nodes with one core each."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    added = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster, added
    ray.shutdown()
    cluster.shutdown()


def where(*, restarted, callback, stop):
    return ray.get_runtime_context().get_node_id()


def test_the_driver_is_where_it_was_started_and_a_relative_root_is_rejected(nodes, tmp_path, monkeypatch):
    here = ray.get_runtime_context().get_node_id()
    for number in range(3):
        assert driver.drive(where, name=f"where {number}", callback=RunCallback()) == here
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ResourceError, match=r"storage\.root: store is relative"):
        launch.run(settings("store", "ray"), False, RunCallback(), Tracker())
    assert list(tmp_path.iterdir()) == []


def settings(root, backend):
    return config.parse(
        {
            "name": "nodes",
            "data": {"name": "shapes"},
            "backbone": {"name": "tiny", "weights": "random"},
            "protocol": {"shots": 4},
            "partition": {"clients": 6},
            "method": {"name": "fedpgp", "n_ctx": 4, "rank": 2},
            "federation": {"rounds": 12, "block_size": 1, "lr": 0.05},
            "resources": {"backend": backend, "actors": 3},
            "storage": {"root": str(root)},
        }
    )


def bits(path):
    store = RunFolder.open(path)
    state = store.state_at(store.rounds()[-1].round)
    return [tree.numpy().tobytes() for tree in (*state.shared.values(), *state.personal.values())], store.clients()


def test_a_node_lost_in_mid_round_changes_no_bit(nodes, tmp_path, caplog):
    cluster, added = nodes
    alone = runner.run(settings(tmp_path / "alone", "serial"), False, RunCallback(), threading.Event())
    lost = threading.Event()

    def remove_a_node(event):
        if event.method == "on_round" and event.arguments[1] == 3 and not lost.is_set():
            lost.set()
            threading.Timer(0.05, cluster.remove_node, [added[0]], {"allow_graceful": False}).start()

    start = time.monotonic()
    run = runner.run(settings(tmp_path / "nodes", "ray"), False, EventStream(remove_a_node), threading.Event())
    assert lost.is_set()
    assert "repeating it on another actor" in caplog.text
    assert time.monotonic() - start < 120
    left, right = bits(run), bits(alone)
    assert left[0] == right[0]
    assert left[1].equals(right[1])
