"""What lies under a storage root: what is planted is found, by name."""

from __future__ import annotations

import numpy as np
import pytest
from small_experiment import found_in

from fedpgp import tracking
from fedpgp.cli.doctor import storage_checks
from fedpgp.cli.doctor.findings import State, ok
from fedpgp.clip.feature_cache import FeatureKey, cache_path, write_shard
from fedpgp.core.text import disk_size

KEY = FeatureKey(manifest="m", weights="w", transform="t")


def shelve(root, rows=6):
    path = cache_path(root / "features", KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, KEY, np.arange(rows), np.ones((rows, 1, 8), np.float32))
    return path


def test_whole_caches_are_counted(tmp_path):
    assert found_in(tmp_path, "caches") == [ok("caches", "none yet")]
    path = shelve(tmp_path)
    assert found_in(tmp_path, "caches") == [ok("caches", f"1 whole, 6 images, {disk_size(path.stat().st_size)}")]


def test_a_cut_cache_and_a_misnamed_one_are_problems_that_name_the_file(tmp_path):
    path = shelve(tmp_path)
    whole = path.read_bytes()
    other = path.with_name("0123456789abcdef.arrow")
    other.write_bytes(whole)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        cut, misnamed = sorted(found_in(tmp_path, "caches"), key=lambda one: "not of its name" in one.what)
        assert (cut.state, misnamed.state) == (State.problem, State.problem)
        assert cut.what.startswith(f"{path}: damaged or incomplete feature cache; delete it")
        assert misnamed.what.startswith(f"{other}: contains the features of {KEY.digest}")


def test_runs_are_counted_and_the_killed_are_named(tmp_path, made_run):
    assert found_in(tmp_path, "runs") == [ok("runs", "none yet")]
    made_run("seed=1", root=tmp_path, test_local=[50])
    made_run("seed=2", root=tmp_path, state="failed")
    assert found_in(tmp_path, "runs") == [ok("runs", "1 failed, 1 finished")]
    killed = made_run("seed=3", root=tmp_path, state="running")
    (killed / ".lock").touch()
    (found,) = found_in(tmp_path, "runs")
    assert (found.state, found.what) == (
        State.warning,
        f"1 failed, 1 finished, 1 interrupted: killed was {killed.name}",
    )
    assert "--resume" in found.advice


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "identity.json").unlink(), "no identity.json"),
        (
            lambda run: (run / "identity.json").write_text("{"),
            "identity.json: damaged or not written by fedpgp: Inv",
        ),
        (
            lambda run: (run / "identity.json").write_text("[]"),
            "identity.json: damaged or not written by fedpgp",
        ),
        (lambda run: (run / "status.json").unlink(), "status.json: cannot be read"),
        (
            lambda run: (run / "status.json").write_text("{}"),
            "status.json: damaged or not written by fedpgp: state: ",
        ),
        (lambda run: (run / "summary.json").unlink(), "has no summary.json"),
        (lambda run: (run / "rounds/000001.arrow").write_bytes(b"torn"), "000001.arrow: round cannot be read"),
        (
            lambda run: (run / "rounds/000001.arrow").write_bytes(shelve(run).read_bytes()),
            "000001.arrow: is not a round",
        ),
    ],
)
def test_a_damaged_run_is_a_problem_by_name_and_hides_no_other(tmp_path, made_run, damage, told):
    made_run("seed=1", root=tmp_path, test_local=[50])
    run = made_run("seed=2", root=tmp_path, test_local=[50])
    damage(run)
    found = list(storage_checks._folders("run", tmp_path / "runs", storage_checks._run, set()))
    assert [(one.state, str(run) in one.what, told in one.what) for one in found[:1]] == [(State.problem, True, True)]
    assert found[1:] == [ok("runs", "1 finished")]


def test_a_damaged_sweep_is_a_problem(tmp_path):
    folder = tmp_path / "sweeps" / "mine-0123"
    folder.mkdir(parents=True)
    (folder / "trials.json").write_text("{}", encoding="utf-8")
    (found,) = found_in(tmp_path, "sweeps")
    assert (found.state, str(folder) in found.what) == (State.problem, True)


def test_what_mlflow_shows_as_running_after_a_kill_is_named_until_it_is_synced(tmp_path, made_run):
    on = "tracking.mlflow=true"
    for where in ([], [f"tracking.uri=sqlite:///{tmp_path}/other.db"]):
        assert found_in(tmp_path, "tracking", on, *where)[0].what.endswith(".db yet; the first run makes one")
    assert list(tmp_path.iterdir()) == []
    run = made_run(root=tmp_path, state="running", test_local=[50])
    uri = tracking.default_uri(tmp_path)
    tracking.sync_run(run, uri)
    assert found_in(tmp_path, "tracking", on)[0].state is State.ok
    (run / ".lock").touch()  # now nobody holds it: its process was killed
    (found,) = found_in(tmp_path, "tracking", on)
    assert (found.state, found.advice) == (State.warning, f"fedpgp track sync {tmp_path}")
    assert found.what.endswith(f"RUNNING there, but ended: {run.name}")
    tracking.sync_run(run, uri)
    assert found_in(tmp_path, "tracking", on)[0].state is State.ok


def test_an_mlflow_store_that_does_not_open_is_a_warning(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    (found,) = found_in(tmp_path, "tracking", "tracking.mlflow=true")
    assert found.state is State.warning
    assert found.what.startswith("MLflow at sqlite:///")
