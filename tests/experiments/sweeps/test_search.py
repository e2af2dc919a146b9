"""The search of an adaptive sweep with a sampler of given suggestions: what is recorded, run, answered and told."""

from __future__ import annotations

import errno

import pytest
from ray.tune.search import Searcher
from tiny_sweep import tiny_base

from fedpgp.core.callbacks import EventStream
from fedpgp.experiments.sweeps import search, trial_runner
from fedpgp.experiments.sweeps.preparation import Preparation
from fedpgp.experiments.sweeps.search import Search, recorded
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.sweeps.trial_runner import Report
from fedpgp.experiments.tracker import Tracker
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Result, SweepFolder

BASE = tiny_base(rounds=1, resources={"backend": "serial"}, tracking={"mlflow": False})
KEY = "federation.lr"


class Given:
    """A sampler that suggests these rates, and remembers what it is told."""

    def __init__(self, *rates):
        self.rates, self.told, self.asked = rates, [], 0

    def ask(self):
        self.asked += 1
        return self.asked - 1, "", {KEY: self.rates[self.asked - 1]}

    def tell(self, number, values):
        self.told.append((number, values and list(values)))


class Case:
    """A sweep of this many trials whose sampler suggests these rates, in a storage root."""

    def __init__(self, root, *rates, trials, name="mine", todo=(), force=False):
        tree = {**BASE, "storage": {"root": str(root)}}
        tune = {"search": "optuna", "metric": "val/hm", "num_samples": trials}
        sweep = Sweep.model_validate({"base": tree, "space": {KEY: {"uniform": [-1, 1]}}, "tune": tune})
        self.events, self.sampler = [], Given(*rates)
        self.prepared = Preparation(sweep, Objectives(("val/hm",)), Tracker(), force)
        self.folder = SweepFolder.create(root, name, "0" * 12, "", Objectives(("val/hm",)), [], trials)
        self.search = Search(self.prepared, self.folder, self.sampler, todo, EventStream(self.events.append))
        self.ended = []
        self.search.on_end = lambda label, result: self.ended.append((label, result.state))

    def next(self, trial_id):
        """The label of the next trial, or None."""
        found = self.search.suggest(trial_id)
        return None if found == Searcher.FINISHED else found["trial"].label

    def end(self, trial_id, value):
        """A trial finishes with a value."""
        work = self.search.work[self.search._running[trial_id]]
        self.folder.record(Result(work.id, "finished", value, ()))
        self.search.on_trial_complete(trial_id, {"report": Report(1, value)})


def test_a_trial_is_recorded_before_it_starts_and_told_when_it_ends(tmp_path):
    case = Case(tmp_path, 0.1, 0.2, trials=2)
    assert (case.folder.planned, case.folder.trials) == (2, [])
    assert case.next("t1") == "lr=0.1"
    (spec,) = case.folder.trials
    assert (spec.label, spec.settings, [str(fold) for fold in spec.folds]) == ("lr=0.1", {KEY: 0.1}, ["seed 1"])
    assert [(one.trial, one.point) for one in case.folder.suggestions] == [(spec.id, {KEY: 0.1})]
    assert case.sampler.told == []
    case.end("t1", 42.0)
    assert case.sampler.told == [(0, [42.0])]
    assert case.next("t2") == "lr=0.2"
    case.end("t2", 43.0)
    assert case.next("t3") is None
    assert case.sampler.asked == 2


def test_a_suggestion_made_before_is_answered_and_takes_no_trial(tmp_path):
    """The second is the first again, while that still runs; the fourth is, after it has ended."""
    case = Case(tmp_path, 0.1, 0.1, 0.2, 0.1, 0.3, trials=3)
    assert [case.next("t1"), case.next("t2")] == ["lr=0.1", "lr=0.2"]
    assert case.sampler.told == []
    case.end("t1", 40.0)
    assert case.sampler.told == [(0, [40.0]), (1, [40.0])]
    assert case.next("t3") == "lr=0.3"
    assert case.sampler.told[2:] == [(3, [40.0])]
    assert [one.point[KEY] for one in case.folder.suggestions] == [0.1, 0.1, 0.2, 0.1, 0.3]
    assert [one.label for one in case.folder.trials] == ["lr=0.1", "lr=0.2", "lr=0.3"]


def test_a_space_without_new_trials_ends_the_search(tmp_path):
    case = Case(tmp_path, 0.1, *[0.1] * search.MAX_REPEATS, trials=3)
    assert case.next("t1") == "lr=0.1"
    case.end("t1", 40.0)
    assert case.next("t2") is None
    (event,) = case.events
    told = "the search ends after 1 of 3 trials: the last 50 suggestions had all been made before"
    assert event.arguments == (told, True)
    assert case.folder.planned == 1
    assert len(case.sampler.told) == 1 + search.MAX_REPEATS


def test_what_finished_in_another_sweep_is_not_run(tmp_path):
    first = Case(tmp_path, 0.1, trials=1, name="first")
    first.next("t1")
    (work,) = first.search.work.values()
    silent, backend = EventStream(lambda event: None), SerialBackend(threads=1)
    *_, last = trial_runner.run(work, lambda: backend, first.prepared.library, silent, Tracker())
    assert last.result.state == "finished"
    other = Case(tmp_path, 0.1, 0.2, trials=2, name="other")
    assert other.next("t1") == "lr=0.2"
    assert other.sampler.told == [(0, [last.result.value])]
    assert other.ended == [("lr=0.1", "finished")]
    assert other.folder.result(work.id) == last.result
    again = Case(tmp_path, 0.1, trials=1, name="again", force=True)
    assert again.next("t1") == "lr=0.1"


def test_an_invalid_trial_fails_and_is_told(tmp_path):
    """A learning rate below 0 is refused when it is drawn."""
    case = Case(tmp_path, -0.5, 0.1, trials=2)
    assert case.next("t1") == "lr=0.1"
    (invalid, _) = case.folder.trials
    result = case.folder.result(invalid.id)
    assert (invalid.label, invalid.folds, result.state) == ("lr=-0.5", (), "failed")
    assert "federation.lr" in result.reason
    assert case.folder.traceback(invalid.id) == result.reason
    assert case.sampler.told == [(0, None)]
    assert case.ended == [("lr=-0.5", "failed")]
    assert [work.label for work in recorded(case.prepared, case.folder)] == ["lr=0.1"]


def test_a_search_continues_from_its_records(tmp_path):
    """Two suggestions with one result, one that failed, and one that was begun: that is first to run."""
    case = Case(tmp_path, 0.1, 0.1, 0.2, 0.3, 0.4, trials=4)
    for trial_id in ("t1", "t2"):
        case.next(trial_id)
        if trial_id == "t1":
            case.end("t1", 40.0)
    case.search.on_trial_complete("t2", None, error=True)
    assert case.sampler.told == [(0, [40.0]), (1, [40.0]), (2, None)]
    case.folder.record(Result(case.folder.trials[1].id, "failed", None, (), "killed"))
    assert case.next("t3") == "lr=0.3"
    todo = [work for work in recorded(case.prepared, case.folder) if case.folder.result(work.id) is None]
    later = Case(tmp_path, 0.1, 0.1, 0.2, 0.3, 0.4, trials=4, todo=todo)
    assert later.sampler.told == [(0, [40.0]), (1, [40.0]), (2, None)]
    assert [later.next("t1"), later.next("t2"), later.next("t3")] == ["lr=0.3", "lr=0.4", None]
    later.end("t1", 50.0)
    assert later.sampler.told[3:] == [(3, [50.0])]
    assert [one.label for one in later.folder.trials] == ["lr=0.1", "lr=0.2", "lr=0.3", "lr=0.4"]


def test_a_trial_that_a_scheduler_stopped_is_told_with_its_value(tmp_path):
    case = Case(tmp_path, 0.1, trials=1)
    case.next("t1")
    case.search.on_trial_complete("t1", {"report": Report(5, 33.0)})
    assert case.sampler.told == [(0, [33.0])]


def test_an_error_ends_the_search_and_is_kept(tmp_path, monkeypatch):
    case = Case(tmp_path, 0.1, trials=1)
    full = OSError(errno.ENOSPC, "full")

    def fail(*given):
        raise full

    monkeypatch.setattr(SweepFolder, "suggest", fail)
    assert case.next("t1") is None
    assert case.search.error is full


def test_starting_over_forgets_what_was_suggested(tmp_path):
    case = Case(tmp_path, 0.1, trials=1)
    case.next("t1")
    case.end("t1", 40.0)
    case.folder.restart_search(3)
    assert (case.folder.planned, case.folder.trials, case.folder.suggestions, case.folder.results()) == (3, [], [], {})


@pytest.mark.parametrize("rates", [(0.123456, 0.123457), (0.1, 0.2)])
def test_labels_tell_suggestions_apart(tmp_path, rates):
    case = Case(tmp_path, *rates, trials=2)
    assert len({case.next("t1"), case.next("t2")}) == 2
