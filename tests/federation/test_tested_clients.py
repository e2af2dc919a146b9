"""Which clients an evaluation tests, and how often a model's text features are computed for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from one_weight import Sum
from rounds import check_same_bits, run

from fedpgp.federation.cohorts import sample_tested
from fedpgp.federation.evaluation import Evaluator
from fedpgp.federation.metrics import NEW_CLIENT
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationWorker

IMAGES = [[1.0, 3.0], [5.0], [-4.0, -4.0, -4.0], [2.0], [-1.0, 6.0]]


def clients_of(result, split="test"):
    return set(result.clients.filter(pc.field("split") == split)["client"].to_pylist())


def test_a_sample_is_a_function_of_seed_round_and_group():
    clients = np.array([2, 3, 5, 7, 11, 13])
    first = sample_tested(1, 1, clients, 3, "honest")
    assert first.tolist() == sorted(set(first.tolist()) & set(clients.tolist()))
    assert len(first) == 3
    assert np.array_equal(first, sample_tested(1, 1, clients, 3, "honest"))
    others = [sample_tested(*changed, clients, 3, group) for changed, group in (
        ((1, 2), "honest"), ((2, 1), "honest"), ((1, 1), "unseen"))]  # fmt: skip
    assert any(not np.array_equal(first, other) for other in others)
    drawn = Counter(client for round in range(300) for client in sample_tested(1, round, clients, 2, "honest").tolist())
    assert all(abs(drawn[client] - 100) < 40 for client in clients.tolist())
    for most in (None, 6, 7):
        assert sample_tested(1, 1, clients, most, "honest") is clients


@pytest.mark.parametrize("block_size", [1, 10])
def test_rows_and_means_are_those_of_the_sample_and_training_is_the_same(server, block_size):
    some = run(server("a", IMAGES, eval_clients=2, block_size=block_size).job)
    everyone = run(server("a", IMAGES, block_size=block_size).job)
    check_same_bits(some[-1].state, everyone[-1].state)
    for round, (result, full) in enumerate(zip(some, everyone, strict=True), start=1):
        chosen = sample_tested(1, round, np.arange(5), 2, "honest").tolist()
        assert clients_of(result) == set(chosen)
        expected = full.clients.filter((pc.field("split") == "train") | pc.field("client").isin(chosen))
        assert result.clients.equals(expected)
        local = [row for row in expected.to_pylist() if row["metric"] == "local" and row["domain"] is None]
        assert result.row.metrics["test/local"] == sum(100 * row["correct"] / row["total"] for row in local) / 2
    assert clients_of(everyone[-1]) == set(range(5))
    assert sum(some[-1].confusion.filter(pc.field("metric") == "all")["count"].to_pylist()) == 2 * 9


def test_as_many_of_the_clients_that_never_train(server):
    """Clients 1 and 3 never train; SharedA's own weights form a global model."""
    from test_held_out import SharedA

    job = server("a", IMAGES, rounds=1, eval_clients=1).job
    job = replace(job, method=SharedA("a"), data=replace(job.data, unseen_clients=(1, 3)))
    (result,) = run(job)
    assert clients_of(result) == set(sample_tested(1, 1, np.array([0, 2, 4]), 1, "honest").tolist())
    assert clients_of(result, NEW_CLIENT) == set(sample_tested(1, 1, np.array([1, 3]), 1, "unseen").tolist())


def test_a_model_is_made_once_for_each_client_and_class_set(server):
    """Of two sets of images with the same classes; the clients are those of blocks of two."""
    models = Counter()

    class Counting(Sum):
        def classifier(self, params, frozen):
            models.update(params["b"].flatten().tolist())
            return super().classifier(params, frozen)

    job = server("a", IMAGES, block_size=2, rounds=1).job
    (images,) = job.data.evaluation_sets
    data = replace(job.data, evaluation_sets=(images, replace(images, split="val")))
    federation = server("a", IMAGES, block_size=2, rounds=1)
    job = replace(job, method=Counting("a"), data=data)
    federation.backend.load(job)
    state = federation.initial_state()
    state.personal["b"][:] = torch.arange(5.0)[:, None]
    counts, _ = Server(job, federation.backend)._evaluate(state, last=False)
    assert {part.split for part in counts} == {"test", "val"}
    assert models == dict.fromkeys(range(5), 1)


def test_a_model_among_the_clients_own_classes_is_made_once(server):
    made = []

    class Counting(Sum):
        def classifier(self, params, frozen):
            made.append(params["a"].item())
            return super().classifier(params, frozen)

    job = server("", IMAGES, rounds=1).job
    (images,) = job.data.evaluation_sets
    data = replace(job.data, evaluation_sets=(images, replace(images, split="val")), own_classes=True)
    evaluator = Evaluator(
        Counting(""), data, {}, server("", IMAGES).backend._worker._evaluator.cache, torch.device("cpu")
    )
    params = {"a": torch.arange(5.0)[:, None], "b": torch.zeros(5, 1)}
    counts = evaluator.own_counts(params, np.arange(5), lambda classes: None)
    assert len(counts) == 10
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("shared", "spared"), [("", True), ("a", False)])
def test_a_block_of_models_that_did_not_change_is_not_tested_again(server, monkeypatch, shared, spared):
    """Two of five clients train in a round. Rows are those of a server that has tested nothing before."""
    tested = []
    evaluate = FederationWorker.evaluate
    monkeypatch.setattr(FederationWorker, "evaluate", lambda worker, call, common: tested.append(
        (call.round, call.clients.tolist())) or evaluate(worker, call, common))  # fmt: skip
    made = server(shared, IMAGES, rounds=5, participation=0.4, block_size=2, lr=0.1)
    state, parts, changed = made.initial_state(), [[0, 1], [2, 3], [4]], []
    for number in range(1, 6):
        result = made.step(state)
        state = result.state
        expected = [
            part for part in parts if not spared or number in (1, 5) or set(part) & set(result.changed.tolist())
        ]
        changed.append(len(expected))
        assert [clients for round, clients in tested if round == number] == expected
        counts, confusion = Server(made.job, made.backend)._evaluate(state, last=number == 5)
        again = made._result(state, [], counts, confusion, result.changed, {})
        assert result.clients.filter(pc.field("split") == "test").equals(again.clients)
        assert result.pooled.equals(again.pooled)
        del tested[:]
    assert (min(changed) < 3) == spared


def test_a_block_is_tested_again_when_its_clients_are_trained_in_another_way(server):
    """The counts are those of the parameters, not of the rounds: of a server that goes back to an earlier state too."""
    made = server("", IMAGES, rounds=9, block_size=2)
    first, second = made.initial_state(), made.initial_state()
    second.personal["b"][:] = 2.0
    once = [made._evaluate(state, last=False)[0] for state in (first, second, first)]
    right = [[part.correct.tolist() for part in counts] for counts in once]
    assert right[0] == right[2] != right[1]
