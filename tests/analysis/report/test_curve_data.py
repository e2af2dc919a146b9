"""Curves and single clients, from rows with known counts."""

from __future__ import annotations

import pyarrow as pa
import pytest
from rich.console import Console

from fedpgp.analysis.loading import Entry, compare, read
from fedpgp.analysis.report import curve_data, pairwise
from fedpgp.federation.records import CLIENT_SCHEMA


def counts(**correct):
    """Client rows of round 1: of 10 images each, by metric for clients 0 and 1; None: has no such images."""
    return pa.Table.from_pylist(
        [
            {"round": 1, "client": client, "split": "test", "metric": metric, "correct": right, "total": 10}
            for metric, both in correct.items()
            for client, right in enumerate(both)
            if right is not None
        ],
        CLIENT_SCHEMA,
    )


def test_a_curve_is_the_mean_over_runs_in_the_rounds_that_all_have(made_run):
    paths = [made_run("seed=1", test_hm=[50, 60, 70]), made_run("seed=2", test_hm=[52, 64])]
    (group,) = compare([Entry(path) for path in paths]).groups
    curve = curve_data.curve(group, "hm")
    assert (curve.rounds, curve.mean, curve.megabytes) == ([1, 2], [51.0, 62.0], [3.0, 6.0])  # 1 up and 2 down a round
    assert curve.spread == pytest.approx([2**0.5, 8**0.5])
    assert curve_data.curve(group, "novel") is None


def test_clients_by_name(made_run):
    run = read(made_run(test_local=[65], clients=counts(local=[6, 7], held_out=[None, 3])))
    assert curve_data.client_accuracies(run, "local") == {"anna": 60.0, "ben": 70.0}
    assert curve_data.client_accuracies(run, "held_out") == {"ben": 30.0}
    assert curve_data.client_accuracies(run, "novel") == {}


def test_the_held_out_matrix_is_the_mean_over_seeds(made_run):
    lodo = ["protocol.name=leave_one_domain_out", "partition.scheme=domain", "partition.clients=null"]
    entries = []
    for domain, seed, both in (("photo", 1, [2, 4]), ("photo", 2, [4, 4]), ("art", 1, [None, 9])):
        fold = [*lodo, f"protocol.held_out={domain}", f"seed={seed}"]
        entries.append(Entry(made_run(*fold, test_held_out=[1], clients=counts(held_out=both))))
    (group,) = compare(entries).groups
    assert curve_data.held_out(group) == {"photo": {"anna": 30.0, "ben": 40.0}, "art": {"ben": 90.0}}
    assert curve_data.pooled_clients(group, "held_out") == [90.0, 20.0, 40.0, 40.0, 40.0]


def test_two_runs_client_by_client_largest_change_first(made_run):
    first = read(made_run(test_local=[70], clients=counts(local=[6, 8])))
    second = read(made_run("method.name=coop", test_local=[75], clients=counts(local=[7, 4])))
    sheet = pairwise.clients(first, second)
    assert sheet.headings == ("client", "Local, A", "Local, B", "Local, B - A")
    assert [[cell.text for cell in row] for row in sheet.rows] == [
        ["ben", "80.00", "40.00", "-40.00"],
        ["anna", "60.00", "70.00", "+10.00"],
    ]
    assert sheet.caption == "Local: 1 clients gain, 1 lose, 0 stay; largest change first"
    Console(quiet=True).print(pairwise.side_by_side(first, second))
