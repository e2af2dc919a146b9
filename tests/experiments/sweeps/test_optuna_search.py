"""Suggestions of Optuna: reproducible, also after an interruption; known points first; better than chance."""

from __future__ import annotations

from statistics import fmean

import pytest

from fedpgp.experiments.sweeps.optuna_search import OptunaSampler
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.storage.objectives import Objectives

SPACE = {
    "method.mu": {"uniform": [0, 1]},
    "federation.lr": {"loguniform": [0.01, 1]},
    "method.rank": {"choice": [1, 2, 4]},
    "protocol.shots": {"randint": [1, 17]},
}
ONE, TWO = Objectives(("val/hm",)), Objectives(("val/local", "val/novel"), ("max", "max"))


def sweep(objectives=ONE, seed=1, trials=40, variants=None, points=()):
    tune = {"search": "optuna", "seed": seed, "num_samples": trials, "points_to_try": list(points), **objectives.head}
    return Sweep.model_validate({"space": SPACE, "variants": variants or {}, "tune": tune})


def values(point, objectives=ONE):
    """The best of one is mu = 0.7 with rank 4; of two, a larger mu is better for the first, a smaller for the other."""
    if len(objectives.metrics) == 1:
        return [90 - 100 * (point["method.mu"] - 0.7) ** 2 - 5 * (point["method.rank"] != 4)]
    return [50 + 30 * point["method.mu"], 80 - 30 * point["method.mu"] ** 2 - (point["method.rank"] != 4)]


def search(settings, count, objectives=ONE, history=(), told=()):
    """The next points after a history with the values told, and the values of all."""
    sampler = OptunaSampler(settings, objectives, history)
    for own in told:
        number, *_ = sampler.ask()
        sampler.tell(number, own)
    found = []
    for _ in range(count):
        number, variant, point = sampler.ask()
        sampler.tell(number, values(point, objectives))
        found.append((variant, point))
    return found


@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
def test_a_search_that_continues_from_its_records_suggests_the_same(objectives):
    """After 3 and after 25 of 30: with random points at first, then with those of TPE, or of the second generation."""
    settings = sweep(objectives, variants={"a": {}, "b": {}})
    whole = search(settings, 30, objectives)
    assert search(settings, 30, objectives) == whole
    for done in (3, 25):
        told = [values(point, objectives) for _, point in whole[:done]]
        assert search(settings, 30 - done, objectives, whole[:done], told) == whole[done:]
    assert search(sweep(objectives, seed=2, variants={"a": {}, "b": {}}), 30, objectives) != whole


def test_values_are_those_of_their_terms():
    for _, point in search(sweep(), 40):
        assert list(point) == list(SPACE)
        assert 0 <= point["method.mu"] < 1
        assert 0.01 <= point["federation.lr"] < 1
        assert point["method.rank"] in (1, 2, 4)
        assert point["protocol.shots"] in range(1, 17)


def test_it_finds_better_points_than_chance():
    """The first ten are random; the mean of the last ten is much nearer to the best."""
    scores = [values(point)[0] for _, point in search(sweep(), 40)]
    assert fmean(scores[-10:]) > fmean(scores[:10]) + 10
    assert max(scores) > 89


def test_two_metrics_are_both_improved():
    """Rank 4 is better for the second metric and no worse for the first: later generations have it more often."""
    ranks = [point["method.rank"] for _, point in search(sweep(TWO, trials=60), 60, TWO)]
    assert ranks[-20:].count(4) > ranks[:20].count(4)


def test_it_starts_from_known_points():
    known = [{"variant": "b", "method.rank": 4, "method.mu": 0.25}, {"protocol.shots": 3}]
    settings = sweep(variants={"a": {}, "b": {}}, points=known)
    (first, second, *_) = whole = search(settings, 5)
    assert (first[0], first[1]["method.rank"], first[1]["method.mu"]) == ("b", 4, 0.25)
    assert (second[0], second[1]["protocol.shots"]) == ("a", 3)
    told = [values(whole[0][1])]
    assert search(settings, 4, history=whole[:1], told=told) == whole[1:]


def test_failed_trials_and_those_without_a_value_do_not_end_it():
    sampler = OptunaSampler(sweep(), ONE)
    for answer in (None, [None], [50.0], None):
        number, *_ = sampler.ask()
        sampler.tell(number, answer)
    assert sampler.ask()[0] == 4
