"""The points with which a search space is checked before a search, and its known points."""

from __future__ import annotations

import math

import pytest

from fedpgp.core.errors import ConfigError
from fedpgp.experiments.sweeps import probes
from fedpgp.experiments.sweeps.sweep_settings import Sweep

SPACE = {
    "method.rank": {"choice": [1, 2]},
    "method.mu": {"uniform": [0, 1]},
    "protocol.shots": {"randint": [1, 5]},
}
TOP = math.nextafter(1, 0)


def sweep(variants=None, points=(), space=SPACE):
    tune = {"search": "optuna", "points_to_try": list(points)}
    return Sweep.model_validate({"space": space, "variants": variants or {}, "tune": tune})


def point(rank, mu, shots):
    return {"method.rank": rank, "method.mu": mu, "protocol.shots": shots}


def test_every_value_and_both_bounds_occur():
    assert list(probes.probes(sweep())) == [
        ("", point(1, 0.0, 1)),
        ("", point(2, 0.0, 1)),
        ("", point(1, TOP, 1)),
        ("", point(1, 0.0, 4)),
    ]


def test_every_variant_and_known_point_occurs():
    own = sweep({"a": {}, "b": {}}, [{"variant": "b", "method.rank": 2}])
    found = list(probes.probes(own))
    assert found[:3] == [("b", point(2, 0.0, 1)), ("a", point(1, 0.0, 1)), ("b", point(1, 0.0, 1))]
    assert {variant for variant, _ in found[3:]} == {"a"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method.rnak": 1}, "point 1: method.rnak is not searched; did you mean method.rank?"),
        ({"method.rank": 3}, r"point 1: method.rank=3 is not in {'choice': \[1, 2\]}"),
        ({"method.rank": True}, "point 1: method.rank=True is not in"),
        ({"method.mu": 1}, "point 1: method.mu=1 is not in {'uniform'"),
        ({"method.mu": "much"}, "point 1: method.mu='much' is not in"),
        ({"protocol.shots": 5}, "point 1: protocol.shots=5 is not in"),
        ({"protocol.shots": 2.0}, "point 1: protocol.shots=2.0 is not in"),
        ({"variant": "c"}, "point 1: unknown variant 'c'; use one of first, second"),
    ],
)
def test_known_points_must_be_in_the_space(given, message):
    with pytest.raises(ConfigError, match=f"^tune.points_to_try: {message}"):
        probes.known_points(sweep({"first": {}, "second": {}}, [given]))


def test_the_bounds_that_are_in_the_space():
    assert probes.known_points(sweep(points=[{"method.mu": 0, "protocol.shots": 4}, {"method.mu": TOP}])) == [
        ("", {"method.mu": 0, "protocol.shots": 4}),
        ("", {"method.mu": TOP}),
    ]


def test_a_search_without_optuna_is_refused(monkeypatch):
    monkeypatch.setattr(probes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as found:
        probes.check_installed()
    assert str(found.value) == "tune.search=optuna needs Optuna; pip install 'fedpgp[optuna]'"
