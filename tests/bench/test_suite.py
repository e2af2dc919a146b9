"""The suite: ratios beside those of a release, what counts as worse, benches that fail, and files of figures."""

from __future__ import annotations

import json

import pytest

from fedpgp.bench import suite
from fedpgp.core.errors import FedPGPError, RunError

FIGURES = {
    "clients": {"ratio_block_to_single": 1.0, "kernels_per_client_step": 5.0},
    "search": {"optuna_trials": 60.0},
    "faults": {"rounds_lost": 0.0, "rows_doubled": 1.0, "final_equal": 1.0},
}


def record(**figures):
    return suite.Record(version="0.1", machine={"cpu": "one"}, figures=figures)


def test_a_figure_that_lost_more_than_a_tenth_is_worse():
    before = record(
        clients={"ratio_block_to_single": 1.2},
        search={"optuna_trials": 55.0},
        faults={"rounds_lost": 0, "rows_doubled": 0},
    )
    found, figures = suite.measure(list(FIGURES), before, lambda line: None, FIGURES.__getitem__)
    assert [tuple(row) for row in found.rows] == [
        ("clients", "ratio_block_to_single", "1", "1.2", "larger", "worse"),  # 0.2 of 1.2
        ("search", "optuna_trials", "60", "55", "smaller", ""),  # 5 of 55
        ("faults", "rounds_lost", "0", "0", "smaller", ""),
        ("faults", "rows_doubled", "1", "0", "smaller", "worse"),
        ("faults", "final_equal", "1", "-", "larger", ""),
    ]
    assert found.figures["regressions"] == 2
    assert found.figures["clients/kernels_per_client_step"] == 5.0
    assert figures == FIGURES


def test_a_bench_that_fails_does_not_stop_the_others():
    def run(bench):
        if bench == "clients":
            raise FedPGPError("fedpgp bench clients: exit code 1: error: no memory")
        return FIGURES[bench]

    found, figures = suite.measure(["clients", "search"], record(), lambda line: None, run)
    assert list(figures) == ["search"]
    assert "no memory" in found.notes[0]
    assert len(found.rows) == 1


def test_figures_are_stored_and_read_again(tmp_path):
    suite.write(tmp_path / "figures.json", "0.2", FIGURES)
    found = suite.read(tmp_path / "figures.json")
    assert (found.version, found.figures) == ("0.2", FIGURES)
    assert found.machine["cores"] >= 1
    (tmp_path / "other.json").write_text(json.dumps({"figures": 1}))
    with pytest.raises(RunError, match="not figures of a suite; give a file"):
        suite.read(tmp_path / "other.json")
    with pytest.raises(RunError, match="No such file"):
        suite.read(tmp_path / "none.json")


def test_the_last_release_has_every_ratio_of_the_suite():
    figures = suite.released().figures
    assert {bench: set(own) for bench, own in figures.items()} == {
        bench: set(own) for bench, own in suite.RATIOS.items()
    }


def test_one_bench_runs_as_a_command():
    assert suite.run("search")["optuna_trials"] > 0


def test_a_command_that_fails_is_an_error_with_its_last_line(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho started\necho 'error: no memory' >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(suite.sys, "executable", str(python))
    with pytest.raises(FedPGPError, match="fedpgp bench search: exit code 3: error: no memory"):
        suite.run("search")
