"""Clients that never train: hand-worked accuracies of the global model and of adapted ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
from test_held_out import SharedA

from fedpgp.core.errors import ClientError
from fedpgp.federation.metrics import NEW_CLIENT, participation_gap, per_client_table
from fedpgp.federation.server import Server


@pytest.fixture
def newcomers(server):
    """Client y (image 5) never trains; images of the others as in one_weight."""

    def make(shared="a", unseen=(1,), **changes):
        made = server(shared, **{"rounds": 1, "new_client_epochs": 1, **changes})
        job = replace(made.job, method=SharedA(shared), data=replace(made.job.data, unseen_clients=unseen))
        made.backend.load(job)
        return Server(job, made.backend)

    return make


@pytest.mark.parametrize("block_size", [1, 3])
def test_the_global_model_and_one_epoch_of_their_own(newcomers, block_size):
    """x and z train: a = (2 * 1 - 3 * 2) / 5 = -0.8, b = 1 and -2; y's b stays 0.

    The cut of the global model is -0.8: right for y's image and for all six. After an epoch of y it is 5, where a tie
    is read as low: wrong for y's image and for 1 and 3. x and z have cuts 0.2 and -2.8, right for all they are shown.
    """
    federation = newcomers(block_size=block_size)
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == pytest.approx(-0.8)
    assert result.state.personal["b"].flatten().tolist() == [1.0, 0.0, -2.0]
    new = result.clients.filter(pc.field("split") == NEW_CLIENT)
    assert {(row["client"], row["metric"], row["correct"], row["total"]) for row in new.to_pylist()} == {
        (1, "local", 1, 1), (1, "all", 6, 6), (1, "local_adapted", 0, 1), (1, "all_adapted", 3, 6),
    }  # fmt: skip
    assert result.clients.filter(pc.field("split") != NEW_CLIENT)["client"].unique().to_pylist() == [0, 2]
    metrics = result.row.metrics
    names = ("local", "all", "local_adapted", "all_adapted")
    assert [metrics[f"new_client/{name}"] for name in names] == [100, 100, 0, 50]
    assert metrics["test/local"] == 100
    assert [name for name in metrics if name.endswith("_global")] == ["test/local_global", "test/all_global"]
    assert participation_gap(metrics) == metrics["test/local_global"] - 100
    assert participation_gap({"test/local_global": 70.0, "test/local": 90.0, "new_client/local": 45.0}) == 25
    assert participation_gap({"test/local": 70.0, "new_client/local": 45.0}) is None
    assert result.row.participants == 2
    table = per_client_table(result.clients, 1).to_pylist()
    assert [(row["client"], row["split"], row["local"], row["local_adapted"]) for row in table] == [
        (0, "test", 100, None), (1, "new_client", 100, 0), (2, "test", 100, None),
    ]  # fmt: skip


def test_without_personal_parameters_the_shared_ones_are_the_model(newcomers):
    federation = newcomers(shared="ab", new_client_epochs=0)
    (result,) = federation.run(federation.initial_state())
    assert result.row.metrics["new_client/local"] == result.row.metrics["new_client/all"] == 100
    assert not any(name.endswith("_adapted") for name in result.row.metrics)


def test_adaptation_changes_no_state_and_follows_rounds(newcomers):
    with_it, without = (list(federation.run(federation.initial_state())) for federation in (
        newcomers(rounds=3, eval_every=2), newcomers(rounds=3, eval_every=2, new_client_epochs=0)
    ))  # fmt: skip
    assert [result.state.shared["a"].item() for result in with_it] == [
        result.state.shared["a"].item() for result in without
    ]
    assert ["new_client/local" in result.row.metrics for result in with_it] == [False, True, True]


def test_participation_is_a_fraction_of_those_that_train(newcomers):
    federation = newcomers(rounds=20, participation=0.5, everyone_first=True)
    found = [result.changed.tolist() for result in federation.run(federation.initial_state())]
    assert found[0] == [0, 2]
    assert all(len(sampled) == 1 for sampled in found[1:])
    assert {sampled[0] for sampled in found[1:]} == {0, 2}


def test_failed_adaptation_follows_the_policy(newcomers):
    """With `exclude` the model at its start, at the cut 0, is evaluated and is right."""
    images = [[1.0, 3.0], [1e30], [-4.0, -4.0, -4.0]]
    federation = newcomers(images=images)
    with pytest.raises(ClientError, match="client 1, round 0, adaptation of a new client: loss is inf"):
        federation._evaluate(federation.initial_state(), last=False)
    federation = newcomers(images=images, policy="exclude")
    counts, _ = federation._evaluate(federation.initial_state(), last=False)
    (adapted,) = (part for part in counts if part.metric == "local_adapted")
    assert adapted.correct.tolist() == [[1]]


def test_an_attacker_is_never_a_new_client(newcomers):
    federation = newcomers(unseen=(2,), attack={"kind": "sign_flip", "fraction": 0.5})
    (attacker,) = federation.job.attackers
    assert attacker in (0, 1)
    assert np.array_equal(federation.honest, [1 - attacker])
    (result,) = federation.run(federation.initial_state())
    assert result.clients.filter(pc.field("split") == "test")["client"].unique().to_pylist() == [1 - attacker]
