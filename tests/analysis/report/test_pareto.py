"""The Pareto front of a sweep in reports: its table, its figure, and what ranks its trials."""

from __future__ import annotations

import pytest

from fedpgp import Sweep
from fedpgp.analysis.report import pareto
from fedpgp.analysis.report.style import encoded
from fedpgp.analysis.report.terminal import ranking
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec

BOTH = ("val/local", "val/novel")
VALUES = {"a": (80.0, 50.0), "b": (70.0, 70.0), "c": (69.0, 70.0), "d": (40.0, 72.0), "e": (90.0, None)}
"""By label: c is dominated by b; of e, novel is missing."""


@pytest.fixture
def make(made_run, tmp_path):
    """A sweep of finished trials, one that failed and one that has not run."""

    def build(rule="hm", values=VALUES):
        objectives = Objectives(BOTH, ("max", "max"), rule)
        labels = [*values, "broken", "absent"]
        trials = [TrialSpec(f"t{label}", label, {"method.rank": 1}, (Fold(1),)) for label in labels]
        folder = SweepFolder.create(tmp_path / "store", "mine", rule[:2], "variants: {}\n", objectives, trials)
        for number, (label, own) in enumerate(values.items()):
            metrics = {name: [value or 1.0] for name, value in zip(BOTH, own, strict=True)}
            run = made_run("seed=1", f"name=n{number}", f"federation.lr={1 + number}", **metrics)
            result = Result(f"t{label}", "finished", objectives.value(own), (FoldRun(1, None, run.name),), values=own)
            folder.record(result)
        folder.record(Result("tbroken", "failed", None, (), "loss is nan"))
        return folder

    return build


def shown(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_the_table_of_the_front(make):
    """Harmonic means: 8000 / 130 = 61.54, 70, and 5760 / 112 = 51.43."""
    table = pareto.front_table(make())
    assert table.headings == ("", "trial", "val/local", "val/novel", "hm")
    assert shown(table) == [
        ["1", "a", "80.00", "50.00", "61.54"],
        ["2", "b", "70.00", "70.00", "70.00 *"],
        ["3", "d", "40.00", "72.00", "51.43"],
    ]
    assert table.caption == "3 of 5 finished trials: no other one is better in both metrics"


def test_the_best_subject_to_a_condition(make):
    """Only d fulfils it, although a and b have more of the first metric."""
    folder = make("val/local where val/novel >= 71")
    assert [row[-1] for row in shown(pareto.front_table(folder))] == ["-", "-", "40.00 *"]
    assert Sweep(folder.path).best["trial"] == "d"


def test_trials_are_ranked_by_the_rule_with_both_metrics(make):
    table = ranking(make())
    assert table.headings == ("", "trial", "state", "hm", "val/local", "val/novel", "folds")
    assert [row[1] for row in shown(table)] == ["b", "c", "a", "d", "e", "broken", "absent"]
    assert shown(table)[0][3:] == ["70.00 *", "70.00", "70.00", "1"]
    assert shown(table)[4][3:] == ["-", "90.00", "-", "1"]
    assert table.title.startswith("mine-hm: hm of val/local and val/novel, mean over folds")


def test_the_front_in_python(make):
    sweep = Sweep(make().path)
    assert sweep.metric == "hm"
    assert sweep.best["trial"] == "b"
    assert sweep.front["trial"].tolist() == ["a", "b", "d"]
    assert sweep.front[list(BOTH)].to_numpy().tolist() == [[80.0, 50.0], [70.0, 70.0], [40.0, 72.0]]


@pytest.mark.parametrize("rule", ["hm", "val/local where val/novel >= 71"])
def test_the_figure_shows_front_and_best(make, rule):
    figure = pareto.front_figure(make(rule))
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["Pareto front"].get_xydata().tolist() == [[80.0, 50.0], [70.0, 70.0], [40.0, 72.0]]
    assert lines["dominated"].get_xydata().tolist() == [[80.0, 50.0], [70.0, 70.0], [69.0, 70.0], [40.0, 72.0]]
    assert lines["best"].get_xydata().tolist() == [[70.0, 70.0] if rule == "hm" else [40.0, 72.0]]
    assert {"1: a", "2: b", "3: d"} <= lines.keys()
    assert encoded(figure, "png").startswith(b"\x89PNG")


def test_only_sweeps_with_two_metrics_have_a_front(make, tmp_path):
    folder = make()
    ((table, figure),) = pareto.of_paths([folder.path, folder.root, folder.root / "runs"])
    assert (figure.name, table.rows[0][1].text) == ("pareto", "a")
    single = SweepFolder.create(tmp_path / "other", "one", "0", "", Objectives(("val/hm",)), [])
    assert list(pareto.of_paths([single.path])) == []
