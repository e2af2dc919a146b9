"""Copies of what is at a URI, for reading: which files, what is copied again, and what is said if nothing is there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from fedpgp.core.errors import RunError
from fedpgp.core.uris import below
from fedpgp.storage import claims, copies
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, FoldRun, Result, SweepFolder, TrialSpec


@pytest.fixture
def store(tmp_path, made_run):
    """The URI of a storage root with three runs, two of them of a sweep."""
    root = tmp_path / "kept"
    runs = [made_run(f"seed={seed}", root=root, test_local=[50, 60]) for seed in (1, 2, 3)]
    planned = TrialSpec("0" * 12, "lr=1", {}, (Fold(1), Fold(2)))
    folder = SweepFolder.create(root, "demo", "0" * 12, "base: icons\n", Objectives(("val/hm",)), [planned])
    of_sweep = tuple(FoldRun(seed, None, path.name) for seed, path in zip((1, 2), runs, strict=False))
    folder.record(Result(planned.id, "finished", 50.0, of_sweep))
    folder.set_status("finished")
    return root.as_uri(), runs, folder


def names(path):
    return {file.relative_to(path).as_posix() for file in path.rglob("[!.]*") if file.is_file()}


def test_local_paths_stay_as_they_are(tmp_path):
    assert (copies.local("fedpgp-store"), copies.local(tmp_path)) == (Path("fedpgp-store"), tmp_path)
    assert copies.source_of(tmp_path) == str(tmp_path)
    assert copies.with_checkpoints(tmp_path) == tmp_path


def test_a_root_is_copied_without_checkpoints(store):
    uri, runs, folder = store
    path = copies.local(uri)
    assert path.parent == Path.home() / ".cache" / "fedpgp" / "read"
    assert [run.path.name for run in RunFolder.find(path)] == sorted(run.name for run in runs)
    assert [(one.trials, one.results()) for one in SweepFolder.find(path)] == [(folder.trials, folder.results())]
    wanted = {name for name in names(runs[0].parent.parent) if "/checkpoints/" not in name}
    assert names(path) == wanted
    assert [row.metrics for row in RunFolder.open(path / "runs" / runs[0].name).rounds()] == [
        {"test/local": 50.0}, {"test/local": 60.0}
    ]  # fmt: skip
    assert copies.source_of(path / "runs" / runs[0].name) == f"{uri}/runs/{runs[0].name}"


def test_a_run_a_sweep_and_the_folder_of_runs_are_copied_alone(store):
    uri, runs, folder = store
    one = copies.local(below(uri, "runs", runs[0].name) + "/")
    assert RunFolder.open(one).identity == RunFolder.open(runs[0]).identity
    assert [path.name for path in one.parent.iterdir()] == [runs[0].name]
    assert copies.source_of(one) == below(uri, "runs", runs[0].name)
    sweep = SweepFolder.open(copies.local(below(uri, "sweeps", folder.path.name)))
    assert {run.path.name for run in sweep.runs(sweep.results()["0" * 12])} == {run.name for run in runs[:2]}
    assert {run.path.name for run in RunFolder.find(sweep.root)} == {run.name for run in runs[:2]}
    assert copies.source_of(sweep.path) == below(uri, "sweeps", folder.path.name)
    assert len(RunFolder.find(copies.local(below(uri, "runs")))) == 3


def test_checkpoints_are_copied_on_request(store):
    uri, runs, _ = store
    path = copies.local(below(uri, "runs", runs[0].name))
    with pytest.raises(RunError, match=r"^x-[0-9a-f]{12}: its checkpoints are not here"):
        RunFolder.open(path).state_at(2)
    path = copies.with_checkpoints(path)
    assert RunFolder.open(path).state_at(2).round == 2
    assert RunFolder.open(copies.local(below(uri, "runs", runs[0].name))).state_at(2).round == 2  # they stay


def test_what_changes_and_goes_away_there_does_so_here(store):
    uri, runs, _ = store
    copies.local(uri)
    shutil.rmtree(runs[2])
    RunFolder.open(runs[1]).fail("oops")
    path = copies.local(uri)
    assert {run.path.name: run.state for run in RunFolder.find(path)} == {
        runs[0].name: "finished", runs[1].name: "failed"
    }  # fmt: skip


def test_a_killed_run_is_interrupted_and_a_claimed_one_is_running(store):
    uri, runs, _ = store
    RunFolder.open(runs[0]).set_status("running")
    name = below(uri, "runs", runs[0].name)
    assert RunFolder.open(copies.local(name)).state == "interrupted"
    claim = runs[0] / claims.FOLDER / "other.json"
    claim.parent.mkdir()
    claim.touch()
    assert RunFolder.open(copies.local(name)).state == "running"
    assert RunFolder.open(copies.local(uri) / "runs" / runs[0].name).state == "running"
    long_ago = time.time() - 2 * claims.STALE_SECONDS
    os.utime(claim, (long_ago, long_ago))
    assert RunFolder.open(copies.local(name)).state == "interrupted"


def test_a_slow_clock_of_this_machine_is_noticed(store, monkeypatch, caplog):
    """A run that was killed long ago by the clock of the store stays interrupted as long as others write there."""
    uri, runs, _ = store
    RunFolder.open(runs[0]).set_status("running")
    claim = runs[0] / claims.FOLDER / "other.json"
    claim.parent.mkdir()
    claim.touch()
    long_ago = time.time() - 2 * claims.STALE_SECONDS
    os.utime(claim, (long_ago, long_ago))
    now = time.time_ns()
    monkeypatch.setattr(copies.time, "time_ns", lambda: now - 3600 * 10**9)
    path = copies.local(uri) / "runs" / runs[0].name
    assert RunFolder.open(path).state == "interrupted"
    assert [record.message for record in caplog.records] == [
        "the clock of this machine is at least 3599 s slow: a run that was killed lately may be listed as running; "
        "set the clock"
    ]


def test_nothing_there_is_said_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "photos").mkdir(parents=True)
    for place, what in (
        ("nowhere", "no such folder, or an empty one"),
        ("empty", "no such folder"),
        ("other", "no run"),
    ):
        with pytest.raises(RunError, match=rf"^file://.*/{place}: {what}.*; give a storage root, a run, or a sweep$"):
            copies.local((tmp_path / place).as_uri())


def test_a_copy_from_a_server_keeps_no_password(s3, store):
    _, runs, _ = store
    for file in names(runs[0]):
        s3.objects["bucket"][f"kept/runs/{runs[0].name}/{file}"] = (runs[0] / file).read_bytes(), time.time()
    path = copies.local(s3.uri("kept"))
    assert RunFolder.open(path / "runs" / runs[0].name).rounds() == RunFolder.open(runs[0]).rounds()
    assert copies.source_of(path).startswith("s3://***@bucket/kept?scheme=http")
    del s3.requests[:]
    copies.local(s3.uri("kept"))
    assert [request for request in s3.requests if request.startswith("GET kept")] == []  # nothing again
