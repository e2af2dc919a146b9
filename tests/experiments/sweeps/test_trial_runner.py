"""The folds of a trial without Tune: finished folds, failures, turns for a scheduler."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean

import pytest
from tiny_sweep import tiny_base

from fedpgp import config
from fedpgp.analysis import coverage
from fedpgp.analysis.coverage import Coverage
from fedpgp.analysis.report.terminal import ranking
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import RunError
from fedpgp.core.files import locked
from fedpgp.experiments import planning
from fedpgp.experiments import runner as experiments
from fedpgp.experiments.planning import Library
from fedpgp.experiments.sweeps import sweep_runner, trial_runner
from fedpgp.experiments.sweeps.trial_runner import FoldWork, TrialWork
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.run_index import RunIndex
from fedpgp.storage.sweep_folder import Fold, Result, SweepFolder, TrialSpec

BASE = tiny_base(rounds=3, resources={"backend": "serial"}, tracking={"mlflow": False})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def library():
    return Library()


@pytest.fixture
def backend():
    made = SerialBackend(threads=1)
    yield made
    made.close()


def work(root, library, seeds=(1, 2), sweep="first", report_every=None, force=False, **federation):
    own = []
    for seed in seeds:
        tree = {**BASE, "seed": seed, "storage": {"root": str(root)}}
        tree["federation"] = {**BASE["federation"], **federation}
        experiment = config.parse(tree)
        own.append(FoldWork(Fold(seed), experiment, planning.plan(experiment, library).digest))
    planned = TrialSpec("abc", "it", {}, tuple(one.fold for one in own))
    folder = SweepFolder.create(root, sweep, "0" * 12, "", Objectives(("val/hm",)), [planned])
    return TrialWork(folder.path, "abc", "it", tuple(own), Objectives(("val/hm",)), report_every, force, Tracker())


def finished_at(root, seed, rounds):
    """Names of the finished runs of a seed with so many rounds."""
    found = []
    for path in sorted((root / "runs").iterdir()):
        store = RunFolder.open(path)
        if store.state == "finished" and (store.identity["seed"], len(store.rounds())) == (seed, rounds):
            found.append(path.name)
    return found


def test_folds_run_in_order_and_the_result_is_their_mean(root, library, backend):
    todo = work(root, library)
    reports = list(trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()))
    assert [report.round for report in reports] == [1, 2, 3, 1, 2, 3, 3]
    assert reports[3].note.startswith("fold 2/2 round 1/3, val/hm ")
    result = reports[-1].result
    assert [(fold.seed, fold.held_out, fold.run) for fold in result.folds] == [
        (seed, None, finished_at(root, seed, 3)[0]) for seed in (1, 2)
    ]
    last = [RunFolder.open(root / "runs" / fold.run).rounds()[-1].metrics["val/hm"] for fold in result.folds]
    assert (result.state, result.value) == ("finished", fmean(last))
    assert SweepFolder.open(todo.sweep).result("abc") == result


@pytest.mark.parametrize("report_every", [None, 1])
def test_each_finished_fold_is_announced_with_its_last_metrics(root, library, backend, report_every):
    events = []
    todo = work(root, library, sweep=f"told-{report_every}", rounds=2, report_every=report_every)
    last = list(trial_runner.run(todo, lambda: backend, library, EventStream(events.append), Tracker()))[-1]
    told = [event.arguments for event in events if event.method == "on_fold"]
    runs = [RunFolder.open(root / "runs" / fold.run).rounds()[-1] for fold in last.result.folds]
    assert told == [("it", count, 2, dict(row.metrics)) for count, row in enumerate(runs, 1)]


def test_folds_finished_in_another_sweep_are_not_repeated(root, library, monkeypatch):
    first = SweepFolder.open(root / "sweeps" / ("first-" + "0" * 12)).result("abc")
    monkeypatch.setattr(experiments, "advance", None)
    todo = work(root, library, sweep="second")
    result = list(trial_runner.run(todo, None, library, RunCallback(), Tracker()))[-1].result
    assert (result.value, result.folds) == (first.value, first.folds)


def test_force_repeats_finished_folds(root, library, backend):
    todo = work(root, library, seeds=(2,), sweep="third", force=True)
    result = list(trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()))[-1].result
    assert finished_at(root, 2, 3) == [finished_at(root, 2, 3)[0], result.folds[0].run]


def test_for_a_scheduler_folds_take_turns_and_each_report_is_their_mean(root, library, backend):
    todo = work(root, library, sweep="turns", report_every=2, rounds=5)
    reports = list(trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()))
    assert [report.round for report in reports] == [2, 4, 5]
    rows = [RunFolder.open(root / "runs" / fold.run).rounds() for fold in reports[-1].result.folds]
    for report in reports:
        assert report.value == fmean(own[report.round - 1].metrics["val/hm"] for own in rows)
    alone = RunFolder.open(root / "runs" / finished_at(root, 1, 3)[0]).rounds()
    assert [dict(row.metrics) for row in rows[0][:3]] == [dict(row.metrics) for row in alone]


def test_runs_of_a_trial_closed_early_are_stopped_and_resume(root, library, backend):
    todo = work(root, library, sweep="early", report_every=1, rounds=4)
    going = trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker())
    next(going)
    going.close()
    begun = [RunFolder.open(root / "runs" / fold.run) for fold in trial_runner.begun(todo)]
    assert [(store.state, len(store.rounds())) for store in begun] == [("stopped", 1), ("stopped", 1)]
    assert SweepFolder.open(todo.sweep).result("abc") is None
    result = list(trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()))[-1].result
    assert [fold.run for fold in result.folds] == [store.path.name for store in begun]
    assert [len(store.rounds()) for store in begun] == [4, 4]


def test_a_trial_that_raises_fails_with_a_traceback(root, library, backend):
    todo = work(root, library, sweep="wrong", lr=1e30)
    (report,) = [
        one for one in trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()) if one.result
    ]
    folder = SweepFolder.open(todo.sweep)
    assert report.result.state == "failed"
    assert "local training: loss is nan" in report.result.reason
    assert "ClientError" in folder.traceback("abc")
    (run,) = folder.runs(report.result)  # the second fold was not begun
    assert (run.state, run.identity["seed"]) == ("failed", 1)
    assert "ClientError" in (run.path / "traceback.txt").read_text()
    json.loads((folder.path / "trials" / "abc.json").read_text())


def test_a_fold_that_another_sweep_runs_is_waited_for(root, library, backend, monkeypatch):
    monkeypatch.setattr(trial_runner, "WAIT_SECONDS", 0.01)
    todo = work(root, library, seeds=(3,), sweep="both")
    (root / "locks").mkdir(exist_ok=True)
    going = trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker())
    with ExitStack() as other:
        other.enter_context(locked(root / "locks" / todo.folds[0].digest))
        assert next(going).note == next(going).note == "waiting for another sweep that runs it"
        assert not finished_at(root, 3, 3)
    assert list(going)[-1].result.state == "finished"


def with_images(todo, content):
    return replace(todo, folds=tuple(replace(fold, content=content) for fold in todo.folds))


class Images(Library):
    """Plans whose images have a content digest of their own."""

    def __init__(self, content):
        super().__init__()
        self._content = content

    def content(self, settings, root):
        return self._content


def recorded(root, todo, **identity):
    """The runs of a trial, with more in their identity."""
    stores = [RunFolder.open(root / "runs" / fold.run) for fold in trial_runner.begun(todo)]
    for store in stores:
        (store.path / "identity.json").write_text(json.dumps({**store.identity, **identity}))
    return stores


def test_a_trial_that_finished_on_other_images_runs_anew(root, library, backend):
    todo = work(root, library, seeds=(3,), sweep="images", rounds=1)
    list(trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()))
    folder, (before,) = SweepFolder.open(todo.sweep), recorded(root, todo, content_digest="one")
    assert selected(folder, with_images(todo, "one")) == ([], ["1 of 1 trials finished before"])
    replaced = with_images(todo, "two")
    with pytest.raises(RunError, match=r"0 of 1 trials ended; the images of 1 have been replaced since\); continue"):
        sweep_runner._refuse_unfinished(folder, [replaced])
    assert selected(folder, replaced) == (["it"], ["1 of 1 trials run anew: their images have been replaced since"])
    result = list(trial_runner.run(replaced, lambda: backend, Images("two"), RunCallback(), Tracker()))[-1].result
    assert result.folds[0].run != before.path.name


def test_a_trial_that_was_stopped_on_other_images_runs_anew(root, library, backend):
    todo = work(root, library, seeds=(4,), sweep="stopped images", report_every=1, rounds=3)
    going = trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker())
    next(going)
    going.close()
    folder = SweepFolder.open(todo.sweep)
    folder.record(Result("abc", "stopped", 1.0, trial_runner.begun(todo), "stopped at round 1 by asha"))
    (before,) = recorded(root, todo, content_digest="one")
    assert selected(folder, with_images(todo, "one"))[0] == []
    replaced = with_images(todo, "two")
    assert selected(folder, replaced)[0] == ["it"]
    result = list(trial_runner.run(replaced, lambda: backend, Images("two"), RunCallback(), Tracker()))[-1].result
    assert result.folds[0].run != before.path.name
    assert before.state == "stopped"


def test_images_that_are_replaced_after_the_sweep_began_are_not_mixed_with_the_first_ones(root, library, backend):
    todo = work(root, library, seeds=(6,), sweep="mixed", report_every=1, rounds=3)
    going = trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker())
    next(going)
    going.close()
    (before,) = recorded(root, todo, content_digest="one")
    begun = with_images(todo, "one")
    result = list(trial_runner.run(begun, lambda: backend, Images("two"), RunCallback(), Tracker()))[-1].result
    assert (result.state, len(before.rounds()), before.state) == ("failed", 1, "stopped")
    assert result.reason == (
        "data shapes: images, weights or code were replaced after the sweep began; run it again with --rerun failed"
    )
    anew = with_images(todo, "two")
    assert selected(SweepFolder.open(todo.sweep), anew, rerun="failed")[0] == ["it"]
    assert list(trial_runner.run(anew, lambda: backend, Images("two"), RunCallback(), Tracker()))[-1].result.folds


def test_runs_are_listed_once_for_all_trials(root, library, monkeypatch):
    todo, listings, find = work(root, library, seeds=(7, 8), sweep="listed"), [], RunIndex.find
    monkeypatch.setattr(RunIndex, "find", lambda *args: listings.append(args) or find(*args))
    assert selected(SweepFolder.open(todo.sweep), todo, replace(todo, id="other"))[0] == ["it", "it"]
    assert len(listings) == 1


def test_what_qualifies_a_ranking_is_in_its_caption(root, library, backend, monkeypatch):
    todo = work(root, library, seeds=(5,), sweep="versions", rounds=1)
    list(trial_runner.run(todo, lambda: backend, library, RunCallback(), Tracker()))
    folder = SweepFolder.open(todo.sweep)
    assert ranking(folder).caption == ""
    with monkeypatch.context() as patch:
        patch.setattr(coverage, "of_run", lambda store: {"val/hm": Coverage(6, 6, 8, 2, True)})
        assert ranking(folder).caption == "HM (val): mean over 6 of 8 clients (2 have no validation image)"
    (store,) = recorded(root, todo)
    recorded(root, todo, versions={**store.identity["versions"], "torch": "2.3.0"})
    other = replace(todo, id="other", folds=(replace(todo.folds[0], digest="f" * 12),))
    chosen, (_, warned) = selected(folder, todo, other)
    assert chosen == ["it"]  # the other one, of the same label
    assert "the trials are ranked although they are made with different torch (2.3.0, " in warned
    assert selected(folder, todo) == ([], ["1 of 1 trials finished before"])


def selected(folder, *works, rerun="missing"):
    """Labels of the trials that would run, and the messages."""
    events = []
    todo = sweep_runner._select(folder, works, rerun, EventStream(events.append))
    return [one.label for one in todo], [event.arguments[0] for event in events]
