"""Small measurements of the engine have their figures."""

from __future__ import annotations

import json

import pytest

from fedpgp import server_rules
from fedpgp.bench import engine


def quiet(text):
    """Ignore progress."""


def test_overhead_has_a_figure_for_each_number_of_clients(ray_cluster):
    outcome = engine.overhead([3, 5], actors=1, report=quiet)
    found = json.loads(outcome.as_json())
    assert (found["bench"], set(found["machine"]) >= {"cpu", "cores", "load"}) == ("overhead", True)
    assert set(found["figures"]) == {"seconds_per_round_3", "seconds_per_round_5"}
    assert all(0 < seconds < 10 for seconds in found["figures"].values())
    assert [len(row) for row in outcome.rows] == [len(outcome.headings)] * 2


@pytest.mark.slow
def test_overhead_of_rules_that_keep_every_update_shows_their_memory(ray_cluster, monkeypatch):
    rules = {name: server_rules.create(name, {}) for name in ("fedavg", "median", "scaffold")}
    monkeypatch.setattr(engine, "LEAST_MEMORY", 2**20)
    outcome = engine.overhead([200], actors=1, report=quiet, rules=rules)
    seconds = {"seconds_per_round_200", "seconds_per_round_200_median", "seconds_per_round_200_scaffold"}
    assert set(outcome.figures) == seconds | {"memory_of_estimate_200_median", "memory_of_estimate_200_scaffold"}
    assert [row[0] for row in outcome.rows] == list(rules)
    assert outcome.rows[0][-2:] == ["-", "-"]


@pytest.mark.slow
def test_growth_has_its_figures(ray_cluster, monkeypatch):
    monkeypatch.setattr(engine, "GROWTH_ROUNDS", 2)
    outcome = engine.growth([20, 40], actors=1, report=quiet)
    assert set(outcome.figures) == {"linearity", "driver_growth_percent", "actor_growth_percent"}
    assert outcome.figures["linearity"] > 0
