"""What a sweep optimizes: the value of a trial by each rule, and the Pareto front, worked out by hand."""

from __future__ import annotations

import pytest

from fedpgp.core.errors import ConfigError
from fedpgp.storage.objectives import Objectives

BOTH = ("val/local", "val/novel")
TWO = ("max", "max")


def test_one_metric_is_the_value():
    one = Objectives(("val/hm",))
    assert (one.name, one.title, one.mode, one.columns) == ("val/hm", "val/hm", "max", ("val/hm",))
    assert one.value([61.5]) == 61.5
    assert one.value([None]) is None
    assert one.head == {"metric": "val/hm", "mode": "max"}


def test_the_harmonic_mean_of_two():
    """2 * 60 * 90 / 150 = 72."""
    both = Objectives(BOTH, TWO)
    assert (both.name, both.title, both.mode) == ("hm", "hm of val/local and val/novel", "max")
    assert both.value([60.0, 90.0]) == pytest.approx(72.0)
    assert both.value([0.0, 90.0]) == 0.0
    assert both.value([60.0, None]) is None


@pytest.mark.parametrize(
    ("rule", "values", "value"),
    [
        ("val/local where val/novel >= 70", [80.0, 70.0], 80.0),
        ("val/local where val/novel >= 70", [80.0, 69.9], None),
        ("val/novel where val/local<=80", [80.0, 10.0], 10.0),
        ("val/novel where val/local <= 80", [80.1, 10.0], None),
    ],
)
def test_one_subject_to_the_other(rule, values, value):
    assert Objectives(BOTH, TWO, rule).value(values) == value


def test_the_mode_is_that_of_the_metric_of_the_rule():
    rule = Objectives(("val/local", "val/base_ece"), ("max", "min"), "val/base_ece where val/local >= 50")
    assert rule.mode == "min"
    assert rule.columns == ("val/base_ece where val/local >= 50", "val/local", "val/base_ece")


def test_the_front_has_the_points_that_no_other_dominates():
    """(7, 7) is dominated by (8, 7), (9, 1) by (9, 2); equal points are both on it; the last ones lack a value."""
    points = [(7.0, 7.0), (9.0, 1.0), (8.0, 7.0), (9.0, 2.0), (1.0, 9.0), (8.0, 7.0), (99.0, None), (None, None)]
    assert Objectives(BOTH, TWO).front(points) == [3, 2, 5, 4]


def test_the_front_of_a_minimum_and_a_maximum():
    """Of the first metric the minimum: (1, 5) dominates (2, 5) and (1, 4)."""
    judged = Objectives(("val/base_ece", "val/local"), ("min", "max"), "val/local where val/base_ece <= 9")
    assert judged.front([(2.0, 5.0), (1.0, 5.0), (1.0, 4.0), (3.0, 6.0)]) == [1, 3]


@pytest.mark.parametrize(
    "given", [Objectives(("val/hm",), ("min",)), Objectives(BOTH, TWO, "val/local where val/novel >= 7")]
)
def test_it_is_read_from_a_file_as_it_was(given):
    assert Objectives.of_head(given.head) == given


@pytest.mark.parametrize(
    ("metrics", "modes", "rule", "message"),
    [
        (("a", "b", "c"), ("max",) * 3, "hm", "tune.metric: give one metric, or two different ones"),
        (("a", "a"), TWO, "hm", "tune.metric: give one metric, or two different ones"),
        (BOTH, ("max",), "hm", "tune.mode: give one for all metrics, or a list with one for each"),
        (("val/hm",), ("max",), "val/hm where val/hm >= 1", "chooses between two metrics; remove it"),
        (BOTH, ("max", "min"), "hm", "hm needs two metrics of which larger is better; write 'val/local where"),
        (BOTH, TWO, "best", "tune.best: 'best' is no rule; write hm, or"),
        (BOTH, TWO, "val/local where val/novel > 7", "is no rule"),
        (BOTH, TWO, "val/local where val/base >= 7", "val/base is not one of the metrics val/local, val/novel"),
        (BOTH, TWO, "val/local where val/local >= 7", "the condition must be on the other metric, not on val/local"),
        (BOTH, TWO, "val/local where val/novel >= much", "'much' is no number"),
        (BOTH, TWO, "val/local where val/novel >= inf", "'inf' is no number"),
    ],
)
def test_what_does_not_fit_is_refused(metrics, modes, rule, message):
    with pytest.raises(ConfigError, match=r"^tune") as found:
        Objectives(metrics, modes, rule)
    assert message in str(found.value)
