"""Progress of the demo: a table that fills up in a terminal, lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from fedpgp.analysis.report.live_standings import LiveStandings

FIRST = {"test/local": 70.0, "test/base": 60.0, "test/novel": 50.0, "test/hm": 58.9, "val/hm": 1.0}
SECOND = {"test/local": 71.0, "test/base": 62.0, "test/novel": 53.0, "test/hm": 61.3, "val/hm": 1.0}


def feed(console):
    with LiveStandings(console, ("PromptFL", "FedPGP")) as shown:
        shown.on_fold("PromptFL", 1, 2, FIRST)
        shown.on_fold("PromptFL", 2, 2, SECOND)
        shown.on_trials(1, 2, "FedPGP: fold 1/2")
        return shown


def test_without_a_terminal_a_line_per_fold_has_the_means_so_far():
    log = io.StringIO()
    feed(Console(file=log, width=200))
    assert log.getvalue().splitlines() == [
        "PromptFL 1/2  Local 70.0  Base 60.0  Novel 50.0  HM 58.9",
        "PromptFL 2/2  Local 70.5  Base 61.0  Novel 51.5  HM 60.1",
        "trials 1/2",
    ]


def test_in_a_terminal_the_table_has_a_row_per_method_above_the_bars():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    shown = feed(console)
    table, *_ = shown._bars.get_renderables()
    plain = Console(file=io.StringIO(), width=120)
    plain.print(table)
    lines = [line.split() for line in plain.file.getvalue().splitlines()]
    assert ["PromptFL", "2/2", "70.5", "61.0", "51.5", "60.1"] in lines
    assert ["FedPGP"] in lines


def test_a_metric_that_was_not_measured_is_left_out():
    log = io.StringIO()
    with LiveStandings(Console(file=log, width=200), ()) as shown:
        shown.on_fold("a", 1, 1, {"test/local": 70.0})
    assert log.getvalue().splitlines() == ["a 1/1  Local 70.0"]
