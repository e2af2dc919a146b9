"""Small sweeps on Ray Tune: failures, resuming, schedulers, and MLflow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tiny_sweep import tiny_base

from fedpgp import tracking
from fedpgp.core.callbacks import EventStream
from fedpgp.core.errors import RunError
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings, tune_runner
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Result, SweepFolder
from fedpgp.tracking import MLflowTracker


def sweep(root, rates, mlflow=False, seeds=(1,), rounds=2, **tune):
    tree = tiny_base(rounds, storage={"root": str(root)}, tracking={"mlflow": mlflow})
    space = {"federation.lr": {"grid_search": list(rates)}}
    return sweep_settings.Sweep.model_validate(
        {"base": tree, "space": space, "folds": {"seeds": list(seeds)}, "tune": tune}
    )


def run(settings, rerun=None):
    """The folder, and the events on the way."""
    events = []
    return sweep_runner.run(settings, rerun, EventStream(events.append), MLflowTracker()), events


def states(folder):
    return {trial.label: folder.result(trial.id).state for trial in folder.trials}


def runs(root):
    return [RunFolder.open(path) for path in sorted((root / "runs").iterdir())]


@pytest.fixture(scope="module")
def done(ray_cluster, tmp_path_factory):
    """Three trials of two folds, of which the second fails."""
    root = tmp_path_factory.mktemp("store")
    settings = sweep(root, [0.1, 1e30, 0.05], mlflow=True, seeds=(1, 2))
    return root, settings, *run(settings)


def test_a_trial_that_raises_fails_alone(done):
    root, _, folder, events = done
    assert states(folder) == {"lr=0.1": "finished", "lr=1e+30": "failed", "lr=0.05": "finished"}
    failed = folder.trials[1].id
    assert "ClientError" in folder.traceback(failed)
    assert [folder.traceback(trial.id) for trial in folder.trials if trial.id != failed] == [None, None]
    assert folder.status["state"] == "failed"
    assert folder.status["reason"] == "1 trial(s) failed"
    assert Counter(store.state for store in runs(root)) == {"finished": 4, "failed": 1}
    warnings = [event.arguments[0] for event in events if event.method == "on_message" and event.arguments[1]]
    assert len(warnings) == 1
    assert warnings[0].startswith("lr=1e+30 failed: client ")
    assert [event.arguments[:2] for event in events if event.method == "on_trials"][-1] == (3, 3)


def test_mlflow_has_the_sweep_its_trials_and_their_folds(done, tmp_path):
    root, _, folder, _ = done
    client = MlflowClient(tracking.default_uri(root))
    experiment = client.get_experiment_by_name("fedpgp").experiment_id
    entries = list(client.search_runs([experiment]))
    names = {entry.info.run_id: entry.info.run_name for entry in entries}
    parents = Counter(names.get(entry.data.tags.get("mlflow.parentRunId"), "-") for entry in entries)
    assert parents == {"-": 1, folder.path.name: 3, "lr=0.1": 2, "lr=1e+30": 1, "lr=0.05": 2}
    statuses = {entry.info.run_name: entry.info.status for entry in entries if not entry.info.run_name.startswith("s")}
    assert statuses == {"lr=0.1": "FINISHED", "lr=1e+30": "FAILED", "lr=0.05": "FINISHED"}
    assert Counter(entry.info.status for entry in entries) == {"FINISHED": 6, "FAILED": 3}
    (failed,) = (entry.info.run_id for entry in entries if entry.info.run_name == "lr=1e+30")
    assert "ClientError" in Path(client.download_artifacts(failed, "traceback.txt", str(tmp_path))).read_text()
    fold = next(entry for entry in entries if entry.info.run_name == "seed 1" and entry.info.status == "FINISHED")
    assert [point.step for point in client.get_metric_history(fold.info.run_id, "val/hm")] == [1, 2]


def test_the_settings_of_a_sweep_name_its_store_from_everywhere(done, tmp_path, monkeypatch):
    root, _, _, _ = done
    monkeypatch.chdir(tmp_path)
    settings = sweep(root, [0.1], seeds=(1, 2))
    settings.base["tracking"]["uri"] = "sqlite:///rel.db"
    recorded = sweep_settings.load(str(run(settings)[0].path / "sweep.yaml"))[0]
    assert recorded.base["tracking"] == {"mlflow": False, "uri": f"sqlite:///{tmp_path}/rel.db", "experiment": None}
    assert recorded.base | {"tracking": None} == settings.base | {"tracking": None}


def test_parent_runs_in_mlflow_have_provenance_tags(done):
    root, _, folder, _ = done
    client = MlflowClient(tracking.default_uri(root))
    entries = client.search_runs([client.get_experiment_by_name("fedpgp").experiment_id])
    parents = {entry.info.run_name: entry for entry in entries if not entry.info.run_name.startswith("seed")}
    digests = {folder.path.name: folder.head["id"], **{trial.label: trial.id for trial in folder.trials}}
    assert {name: entry.data.tags["fedpgp.config_digest"] for name, entry in parents.items()} == digests
    identities = [store.identity for store in runs(root)]
    for entry in parents.values():
        for key in ("method", "data", "backbone", "manifest_digest"):
            assert entry.data.tags[f"fedpgp.{key}"] == identities[0][key]
        assert "fedpgp.hardware.cores" in entry.data.tags
        assert "fedpgp.versions.torch" in entry.data.tags
        assert "fedpgp.id" not in entry.data.tags
        used = [(one.dataset.name, one.dataset.digest) for one in entry.inputs.dataset_inputs]
        assert used == [("shapes", identities[0]["manifest_digest"])]
    seeds = {name: entry.data.tags.get("fedpgp.seed") for name, entry in parents.items()}
    assert seeds == {**dict.fromkeys(digests), "lr=1e+30": "1"}  # one fold began there; the others had two


def test_ended_trials_are_not_repeated(done, monkeypatch):
    _, settings, folder, _ = done
    before = folder.results()
    monkeypatch.setattr(tune_runner, "run", None)
    again, events = run(settings)
    assert again.results() == before
    notes = [event.arguments[0] for event in events if event.method == "on_message"]
    assert notes == ["2 of 3 trials finished before", "1 of 3 trials failed before; run them again with --rerun failed"]


def test_rerun_failed_repeats_only_failed_trials(done):
    root, settings, _, _ = done
    before = {store.path.name: store.status for store in runs(root)}
    run(settings, "failed")
    changed = [store for store in runs(root) if before.get(store.path.name) != store.status]
    assert [(store.state, store.identity["seed"]) for store in changed] == [("failed", 1)]
    assert set(before) == {store.path.name for store in runs(root)}  # it went on in its folder


def test_resume_rerun_failed_and_rerun_all_select_different_trials(done, monkeypatch):
    _, settings, folder, _ = done
    chosen = []
    monkeypatch.setattr(tune_runner, "run", lambda settings, folder, todo, *rest: chosen.append(todo))

    def selected(rerun):
        del chosen[:]
        run(settings, rerun)
        return [one.label for todo in chosen for one in todo]

    assert selected(None) == selected("missing") == []
    assert selected("failed") == ["lr=1e+30"]  # which now has no result: it is missing
    with pytest.raises(RunError, match=r"this sweep exists \(\w+, 2 of 3 trials ended\); continue with --resume, or"):
        run(settings)
    assert selected("missing") == ["lr=1e+30"]
    folder.record(Result(folder.trials[1].id, "failed", None, (), "No space left on device"))
    assert selected("missing") == []
    folder.record(Result(folder.trials[1].id, "failed", None, (), "No space left on device", disk_full=True))
    assert SweepFolder.open(folder.path).result(folder.trials[1].id).disk_full
    assert selected("missing") == ["lr=1e+30"]
    assert selected("all") == ["lr=0.1", "lr=1e+30", "lr=0.05"]


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "stopped"), [("asha", [2, 3, 4, 5]), ("median", [4, 5])])
def test_schedulers_stop_trials_that_fall_behind(ray_cluster, tmp_path, scheduler, stopped):
    """One trial at a time, each worse than the one before after two rounds: asha stops all but the first, the median
    rule those for which there are three others to compare with."""
    rates = [0.01, 0.001, 0.0001, 0.1, 0.5]
    judged = {"metric": "train/loss", "mode": "min", "scheduler": scheduler, "grace_rounds": 2}
    folder, _ = run(sweep(tmp_path, rates, rounds=6, seeds=(1, 2), **judged))
    results = [folder.result(trial.id) for trial in folder.trials]
    assert [number for number, result in enumerate(results, 1) if result.state == "stopped"] == stopped
    assert [result.state for result in results].count("finished") == 5 - len(stopped)
    for result in results:
        lengths = [len(store.rounds()) for store in folder.runs(result)]
        if result.state == "stopped":
            assert result.reason == f"stopped at round 2 by {scheduler}"
            assert lengths == [2, 2]
            assert {store.state for store in folder.runs(result)} == {"stopped"}
        else:
            assert lengths == [6, 6]
    assert folder.status["state"] == "finished"
