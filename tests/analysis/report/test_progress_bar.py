"""Progress as lines in a log: counts, speed and time left."""

from __future__ import annotations

import io

from rich.console import Console

from fedpgp.analysis.report import progress_bar


def test_lines_say_how_much_time_is_left(monkeypatch):
    """25 of 100 were there at the start; 50 in 20 s since, so the last 25 take 10 s."""
    now, log = [100.0], io.StringIO()
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with progress_bar.ProgressDisplay(Console(file=log, width=200)) as shown:
        shown.on_extract(25, 100, None)
        now[0] = 120.0
        shown.on_extract(75, 100, 2.5)
    assert log.getvalue().splitlines() == [
        "frozen features 25/100",
        "frozen features 75/100  2.5 images/s  0:00:10 left",
    ]


def test_where_a_run_is_gone_on_with_is_always_printed():
    log = io.StringIO()
    with progress_bar.ProgressDisplay(Console(file=log, width=200)) as shown:
        shown.on_plan("plan")
        shown.on_prepare()
        shown.on_begin("folder", 9, 60)
        shown.on_round("folder", 10, 60, {"test/local": 50.0})
    assert log.getvalue().splitlines() == ["plan", "preparing  reading data and backbone", "rounds 9/60"]


def test_the_first_line_of_a_stage_is_printed_once():
    log = io.StringIO()
    with progress_bar.ProgressDisplay(Console(file=log, width=200)) as shown:
        for number in range(5):
            shown.on_trials(0, 3, f"round {number}")
        shown.on_trials(3, 3, "")
    assert log.getvalue().splitlines() == ["trials 0/3  round 0", "trials 3/3"]
