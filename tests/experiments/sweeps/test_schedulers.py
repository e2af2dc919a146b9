"""Which trials are compared with which, and when; on Ray Tune: test_sweep_runs.py and test_split_sweeps.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fedpgp.experiments.sweeps.schedulers import Brackets, scheduler
from fedpgp.experiments.sweeps.sweep_settings import TuneSettings

GO, STOP = "CONTINUE", "STOP"


class Trial:
    """As much of a trial of Tune as a scheduler sees."""

    def __init__(self, number):
        self.trial_id = str(number)


def run(made, *trials, rounds=9):
    """Run trials one after another; gives after how many rounds each ended."""
    ended = []
    for number, values in enumerate(trials):
        trial = Trial(number)
        made.on_trial_add(None, trial)
        for at in range(1, rounds + 1):
            result = {"rounds": at, "value": values} if values is not None else {"rounds": at}
            if at == rounds or made.on_trial_result(None, trial, result) == STOP:
                made.on_trial_complete(None, trial, result)
                ended.append(at)
                break
    return ended


def test_asha_compares_every_trial_with_all_before():
    made = scheduler(TuneSettings(scheduler="asha", grace_rounds=1), 9)
    assert isinstance(made, Brackets)
    assert run(made, 50.0, 40.0, 60.0, 30.0) == [9, 1, 9, 1]


def test_hyperband_compares_in_turn_after_1_3_and_never():
    """Three brackets for 9 rounds: first decisions after 1 round, after 3, and none (after 9 the trial has ended)."""
    made = scheduler(TuneSettings(scheduler="hyperband", grace_rounds=1), 9)
    first = [90.0, 90.0, 90.0]
    assert run(made, *first, 10.0, 10.0, 10.0, 95.0, 5.0, 5.0) == [9, 9, 9, 1, 3, 9, 9, 3, 9]


def test_hyperband_selects_the_minimum():
    made = scheduler(TuneSettings(scheduler="hyperband", grace_rounds=3, mode="min", metric="train/loss"), 9)
    assert run(made, 1.0, 1.0, 2.0, 2.0, 0.5, 3.0) == [9, 9, 3, 9, 9, 9]  # two brackets: after 3 rounds, and never


def test_hyperband_with_fewer_rounds_than_the_grace_period_never_stops():
    made = scheduler(TuneSettings(scheduler="hyperband", grace_rounds=5), 2)
    assert run(made, 90.0, 1.0, 2.0, rounds=2) == [2, 2, 2]


@pytest.mark.parametrize("name", ["asha", "hyperband", "median"])
def test_a_trial_without_a_value_is_not_stopped_and_stops_no_other(name):
    made = scheduler(TuneSettings(scheduler=name, grace_rounds=1), 9)
    assert run(made, None, None, None, 50.0, None) == [9] * 5


def test_the_median_of_three_trials():
    made = scheduler(TuneSettings(scheduler="median", grace_rounds=2), 9)
    pending = SimpleNamespace(get_live_trials=lambda: [SimpleNamespace(status="PENDING")])
    others = [Trial(name) for name in "abc"]
    for trial, value in zip(others, (50.0, 60.0, 70.0), strict=True):
        made.on_trial_add(None, trial)
        for at in (2, 4):
            assert made.on_trial_result(pending, trial, {"rounds": at, "value": value}) == GO  # and is not paused
    worse = Trial("d")
    made.on_trial_add(None, worse)
    assert made.on_trial_result(pending, worse, {"rounds": 2, "value": 59.0}) == STOP


def test_fifo_stops_nothing():
    assert run(scheduler(TuneSettings(), 9), 50.0, 1.0) == [9, 9]
