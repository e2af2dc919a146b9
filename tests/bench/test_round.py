"""The cost of the reference round, and what our round trains and tests."""

from __future__ import annotations

import json

from fedpgp.bench import round as bench
from fedpgp.bench.workload import job
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server


def test_cost_of_the_reference():
    """4 steps of 10 s; 250 images of 0.2 s in three batches of 100 and 40 in one, 1 s of prompts each."""
    assert bench.reference_seconds(10.0, 0.2, 1.0, steps=4, tests=[250, 40]) == 40 + 50 + 3 + 8 + 1


def test_clients_and_their_tests(workload, tmp_path):
    """20 classes over 10 clients, 3 shots: two steps an epoch of 3 images; 40 base images, 4 of each client."""
    wanted = job(workload, tmp_path, clients=10, shots=3, batch_size=3, tests=(40, 5))
    assert [rows.tolist() for rows in wanted.data.train_rows[:2]] == [list(range(6)), list(range(6, 12))]
    assert wanted.data.train_labels[1].tolist() == [2, 2, 2, 3, 3, 3]
    backend = SerialBackend(1)
    backend.load(wanted)
    result = Server(wanted, backend).step(Server(wanted, backend).initial_state())
    backend.close()
    totals = result.clients.group_by(["metric"]).aggregate([("total", "sum")]).to_pydict()
    assert dict(zip(totals["metric"], totals["total_sum"], strict=True)) == {
        "train": 60,
        "ce": 60,
        "con": 60,
        "local": 40,
        "local_before_aggregation": 40,
        "base": 400,
        "novel": 50,
    }


def test_figures(workload):
    outcome = bench.measure(1, lambda what: None, workload, tests=(20, 3), batch=16)
    found = json.loads(outcome.as_json())
    assert (found["bench"], set(found["figures"])) == ("round", {"ratio", "ratio_full_evaluation"})
    assert all(value > 0 for value in found["figures"].values())
    assert "40 steps of 16 images" in outcome.notes[0]
