"""The held-out domain: counts of each client's model and of the global model, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from one_weight import NoText, Sum

from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.config import FederationSettings
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.messages import Features
from fedpgp.federation.metrics import per_client_table
from fedpgp.federation.server import Server
from fedpgp.federation.state import State
from fedpgp.federation.worker import FederationJob


class SharedA(Sum):
    """`a` alone is a model; the neutral value of `b` is 0."""

    def global_model(self, params):
        return {**params, "b": torch.zeros_like(params["b"])}


def counts(method, state, tmp_path, **changes):
    """Rows of (metric, client, correct, total) of an evaluation on the held-out images 1, 2, 3, 4 (all `high`)."""
    key = FeatureKey(manifest="m", weights="w", transform="t")
    values = np.array([-5, 5, 1, 2, 3, 4], np.float32)
    write_shard(tmp_path / "features.arrow", key, np.arange(6), values.reshape(6, 1, 1))
    own = EvaluationSet(
        split="test", class_set="all", rows=np.arange(2), labels=np.array([0, 1]), domains=np.zeros(2, np.int32),
        members=(np.array([0]), np.array([1])),
    )  # fmt: skip
    held = EvaluationSet(
        split="test", class_set="all", rows=np.arange(2, 6), labels=np.ones(4, np.int64), held_out=True,
        domains=np.ones(4, np.int32),
    )  # fmt: skip
    data = FederatedData(
        client_names=("x", "y"), class_names=("low", "high"), domains=("seen", "held"), class_sets={"all": (0, 1)},
        train_set="all", train_rows=(np.array([0]), np.array([1])), train_labels=(np.array([0]), np.array([1])),
        evaluation_sets=(own, held), manifest_digest="m",
    )  # fmt: skip
    where = Features(tmp_path / "features.arrow", key)
    federation = FederationSettings(**{"rounds": 1, "lr": 1e-9, "local_epochs": 1, **changes})
    backend = SerialBackend(threads=1)
    backend.load(FederationJob(method, NoText(), data, where, where, federation, seed=1))
    result = Server(backend._worker.job, backend).step(state)
    backend.close()
    rows = result.clients.to_pylist()
    return result, {
        (row["metric"], row["domain"], row["client"]): (row["correct"], row["total"])
        for row in rows
        if row["split"] == "test"
    }


def state(shared, personal):
    """The cut of client k is a + b_k."""
    return State(0, {key: torch.tensor([value]) for key, value in shared.items()}, {
        key: torch.tensor(values).unsqueeze(1) for key, values in personal.items()
    })  # fmt: skip


@pytest.mark.parametrize("block_size", [1, 2])
def test_clients_and_global_model_on_the_held_out_domain(block_size, tmp_path):
    """a = 1.5, b = 1 and -9: cuts 2.5 and -7.5, so 2 and 4 of the 4 images are right; a alone cuts at 1.5: 3."""
    start = state({"a": 1.5}, {"b": [1.0, -9.0]})
    result, rows = counts(SharedA({"a"}), start, tmp_path, block_size=block_size)
    assert [rows["held_out", None, client] for client in (0, 1)] == [(2, 4), (4, 4)]
    assert [rows["held_out_global", None, client] for client in (0, 1)] == [(3, 4), (3, 4)]
    assert rows["held_out", "held", 0] == (2, 4)
    assert rows["held_out", "seen", 0] == (0, 0)
    assert rows["all", None, 0] == (2, 2)
    assert result.row.metrics["test/held_out"] == 75.0
    assert result.row.metrics["test/held_out_global"] == 75.0
    assert not any(name.startswith("val/") for name in result.row.metrics)
    table = per_client_table(result.clients, 1).to_pydict()
    assert (table["held_out"], table["held_out_global"]) == ([50.0, 100.0], [75.0, 75.0])


def test_without_personal_parameters_the_model_is_the_global_model(tmp_path):
    _, rows = counts(Sum({"a", "b"}), state({"a": 1.5, "b": 1.0}, {}), tmp_path)
    assert rows["held_out", None, 0] == rows["held_out_global", None, 1] == (2, 4)


def test_without_a_global_model_none_is_counted(tmp_path):
    for shared, personal in (({}, {"a": [0.0, 0.0], "b": [0.0, 0.0]}), ({"a": 0.0}, {"b": [0.0, 0.0]})):
        result, _ = counts(Sum(shared), state(shared, personal), tmp_path)
        assert "test/held_out" in result.row.metrics
        assert "test/held_out_global" not in result.row.metrics
