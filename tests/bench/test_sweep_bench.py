"""The bench of sweeps: its arithmetic on times worked out by hand, and its figures."""

from __future__ import annotations

import json

import pytest

from fedpgp.bench import sweep as bench
from fedpgp.bench.sweep import Span


def test_runs_by_trial_process():
    """The second process is ready late: the first has run two by then."""
    a, b, c, d = Span(0, 1, 5), Span(6, 7, 11), Span(8, 9, 13), Span(11, 12, 16)
    assert bench.occupied([d, c, b, a]) == [[a, b, d], [c]]


def test_overhead_and_warm_start():
    """Two processes, held for 15 and 4 s; four runs of 5 s, of which the first rows of two (1 s) are not counted."""
    slots = [[Span(0, 1, 5), Span(6, 7.5, 11), Span(11, 12, 16)], [Span(8, 9, 13)]]
    assert bench.overhead(slots, work=20, first=1) == pytest.approx(100 * (19 / 18 - 1))
    assert bench.warm_start(slots, first=0.25) == pytest.approx((2.5 + 1) / 2 - 0.25)


@pytest.mark.slow
def test_a_sweep_has_its_figures(ray_cluster, monkeypatch):
    """One trial at a time; the two share MLflow's file, which is 1.8 MB as soon as it exists."""
    monkeypatch.setattr(bench, "CONCURRENT", 1)
    outcome = bench.measure(bench.Size(trials=2, seconds=0.5, pairs=1, tiny=10), lambda what: None)
    found = json.loads(outcome.as_json())
    assert found["bench"] == "sweep"
    assert set(found["figures"]) == {
        "overhead_percent", "warm_start_seconds", "tracking_percent", "driver_growth_percent", "disk_per_trial_mb",
        "run_one_round_seconds", "run_one_round_serial_seconds", "report_seconds", "report_cpu_seconds",
        "ui_ready_seconds",
    }  # fmt: skip
    assert 0 < found["figures"]["disk_per_trial_mb"] < 2
