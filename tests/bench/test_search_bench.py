"""The bench of searches: its counting on values worked out by hand, and the grid that it ships with."""

from __future__ import annotations

import json
from math import prod

from fedpgp.bench import search as bench
from fedpgp.bench.search import Grid

SMALL = Grid("by hand", "val/hm", {"method.rank": [1, 2], "method.mu": [0.0, 0.5, 1.0]}, (1.0, 2.0, 3.0, 4.0, 9.0, 5.0))


def test_the_last_key_varies_fastest():
    assert SMALL.points[4] == (2, 0.5)
    assert SMALL.values[4] == max(SMALL.values)


def test_the_trials_until_the_best():
    assert bench.trials_to_best(SMALL, [1.0, 4.0, 9.0]) == 3
    assert bench.trials_to_best(SMALL, [1.0, 4.0]) == 6
    assert bench.trials_to_best(SMALL, [1.0, 5.0, 9.0], margin=4.0) == 2


def test_each_point_counts_once():
    for values in (list(bench.by_optuna(SMALL, 1)), list(bench.by_chance(SMALL, 1))):
        assert sorted(values) == sorted(SMALL.values)


def test_both_searches_have_their_figures():
    found = json.loads(bench.measure(lambda what: None, SMALL, 2).as_json())
    names = {
        f"{name}_{what}"
        for name in ("optuna", "random")
        for what in ("trials", "mean_trials", "near_trials", "best_of_20")
    }
    assert found["figures"].keys() == names
    assert found["figures"]["random_best_of_20"] == 9.0


def test_the_recorded_grid_is_complete():
    grid = bench.load()
    assert len(grid.values) == prod(map(len, grid.space.values()))
    assert grid.values.count(max(grid.values)) == 1
    assert grid.command.startswith("fedpgp sweep icons ")
    assert bench.GRID.stat().st_size < 50_000
