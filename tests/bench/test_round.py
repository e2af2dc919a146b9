"""The round: what the plain way is charged with, and that ours trains and tests what it says."""

from __future__ import annotations

import json

from fedpgp.bench import round as bench
from fedpgp.bench.caltech import job
from fedpgp.federation.backends.serial import SerialBackend
from fedpgp.federation.server import Server


def test_cost_of_the_plain_way():
    """4 steps of 10 s; 250 images of 0.2 s in three batches of 100 and 40 in one, 1 s of prompts each."""
    assert bench.PlainCost(step=10.0, image=0.2, text=1.0).round(4, [250, 40]) == 40 + 50 + 3 + 8 + 1


def test_clients_and_their_tests(scene, tmp_path):
    """20 classes over 10 clients, 3 shots: two steps an epoch of 3 images; 40 base images, 4 of each client."""
    wanted = job(scene, tmp_path, clients=10, shots=3, batch_size=3, tests=(40, 5))
    assert [rows.tolist() for rows in wanted.data.train_rows[:2]] == [list(range(6)), list(range(6, 12))]
    assert wanted.data.train_labels[1].tolist() == [2, 2, 2, 3, 3, 3]
    backend = SerialBackend(1)
    backend.load(wanted)
    result = Server(wanted, backend).step(Server(wanted, backend).initial_state())
    backend.close()
    totals = result.clients.group_by(["metric"]).aggregate([("total", "sum")]).to_pydict()
    assert dict(zip(totals["metric"], totals["total_sum"], strict=True)) == {
        "train": 60,
        "local": 40,
        "local_before_aggregation": 40,
        "base": 400,
        "novel": 50,
    }


def test_figures(scene):
    outcome = bench.measure(1, lambda what: None, scene, tests=(20, 3), batch=16)
    told = json.loads(outcome.as_json())
    assert (told["bench"], set(told["figures"])) == ("round", {"ratio", "ratio_full_evaluation"})
    assert all(value > 0 for value in told["figures"].values())
    assert "40 steps of 16 images" in outcome.notes[0]
