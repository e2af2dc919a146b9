"""Sweeps in an object store: every file is there first, and another machine has all of it with only the URI."""

from __future__ import annotations

import pytest

from fedpgp.core.errors import StorageError
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, Suggestion, SweepFolder, TrialSpec

DIGEST, URI = "0123456789ab", "s3://bucket"
FIRST, SECOND = (
    TrialSpec(f"{number:012d}", f"lr={number}", {"federation.lr": number}, (Fold(1),)) for number in (1, 2)
)
SWEEP = f"kept/sweeps/demo-{DIGEST}"


def sweep(root, uri=URI):
    return SweepFolder.create(root, "demo", DIGEST, "base: icons\n", Objectives(("val/hm",)), [FIRST], 3, uri)


def put(bucket):
    found = [path.removeprefix(f"{SWEEP}/") for what, path in bucket.done if what == "put"]
    del bucket.done[:]
    return found


def test_the_list_of_trials_is_sent_last_and_makes_it_a_sweep(tmp_path, bucket):
    bucket.broken = "trials.json"
    with pytest.raises(StorageError, match="no route to host"):
        sweep(tmp_path / "a")
    assert not SweepFolder.exists(tmp_path / "b", "demo", DIGEST, URI)
    bucket.broken = None
    del bucket.done[:]
    sweep(tmp_path / "a")  # the local one is sent
    assert put(bucket) == ["sweep.yaml", "status.json", "trials.json"]
    assert SweepFolder.exists(tmp_path / "b", "demo", DIGEST, URI)


def test_trials_results_and_status_are_there_before_they_are_here(tmp_path, bucket):
    ours = sweep(tmp_path / "a")
    del bucket.done[:]
    ours.suggest(Suggestion(SECOND.id, "", {}), SECOND)
    ours.record(Result(FIRST.id, "failed", None, (), "oops"), "trace")
    ours.set_status("stopped")
    assert put(bucket) == ["trials.json", f"trials/{FIRST.id}.txt", f"trials/{FIRST.id}.json", "status.json"]
    theirs = sweep(tmp_path / "b")
    assert (theirs.trials, theirs.results(), theirs.state) == ([FIRST, SECOND], ours.results(), "stopped")
    assert theirs.head == ours.head
    theirs.record(Result(FIRST.id, "finished", 50.0, (FoldRun(1, None, "x-0"),)))
    theirs.forget(SECOND.id)
    assert sweep(tmp_path / "a").result(FIRST.id).value == 50.0
    assert sweep(tmp_path / "a").traceback(FIRST.id) is None
    theirs.forget(FIRST.id)
    assert sweep(tmp_path / "a").results() == {}
    bucket.broken = "trials.json"
    third = TrialSpec("3" * 12, "lr=3", {}, ())
    with pytest.raises(StorageError):
        theirs.suggest(Suggestion(third.id, "", {}), third)
    assert [trial.id for trial in theirs.trials] == [FIRST.id, SECOND.id]


def test_a_killed_sweep_is_interrupted_for_another_machine(tmp_path, bucket):
    sweep(tmp_path / "a")
    assert sweep(tmp_path / "b").state == "interrupted"


def test_without_a_uri_trials_are_added_durably_here(tmp_path):
    ours = sweep(tmp_path, uri=None)
    ours.suggest(Suggestion(SECOND.id, "", {}), SECOND)
    assert SweepFolder.open(ours.path).trials == [FIRST, SECOND]
    assert SweepFolder.open(ours.path).head == ours.head
