"""`track sync` sends each run to its own store, or says why that store cannot be found; its advice works."""

from __future__ import annotations

import os
import pickle
import shlex

import pytest
from mlflow.tracking import MlflowClient

from fedpgp import config, tracking
from fedpgp.core.errors import ConfigError, RunError
from fedpgp.storage.run_folder import RunFolder


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///rel.db", "tracking.uri: sqlite:///rel.db is relative to the folder in which this was started"),
        ("sqlite:///below/rel.db?timeout=5", "sqlite:///below/rel.db\\?timeout=5 is relative to the folder"),
        ("./mlruns", "tracking.uri: ./mlruns: MLflow refuses a folder"),
        ("nonsense://x", "tracking.uri: nonsense://x: MLflow knows no store of the kind 'nonsense'"),
    ],
)
def test_a_store_that_earlier_code_kept_is_left_out_with_advice_that_works(
    tmp_path, monkeypatch, made_run, shared_uri, uri, message
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "a store"
    left_out = made_run(f"tracking.uri={uri}", root=root)
    other = made_run("seed=2", f"tracking.uri={shared_uri}", "tracking.experiment=left", root=root)
    synced = []
    with pytest.raises(RunError, match=message) as caught:
        synced.extend(tracking.sync_all(root))
    assert "--uri" in str(caught.value)
    assert synced == [other]
    assert os.listdir(tmp_path) == ["a store"]
    assert list(tracking.sync_all(left_out, shared_uri)) == [left_out]


def test_a_uri_that_mlflow_can_never_open_is_rejected_first(tmp_path, made_run):
    made_run(root=tmp_path)
    with pytest.raises(ConfigError, match=r"^--uri: nonsense://x: .*; give --uri sqlite:///FILE or --uri http://"):
        list(tracking.sync_all(tmp_path, "nonsense://x"))


def test_a_run_without_a_store_goes_to_that_of_the_environment(tmp_path, monkeypatch, made_run, shared_uri):
    run = made_run(root=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    assert list(tracking.sync_all(tmp_path)) == [run]
    client = MlflowClient(shared_uri)
    experiment = client.get_experiment_by_name("of the environment").experiment_id
    assert [one.info.run_name for one in client.search_runs([experiment])] == [run.name]
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("given", [(), ("tracking.uri=sqlite:////nowhere.db",)], ids=["default", "own"])
def test_the_command_that_catches_up_names_the_store_unless_the_folder_does(tmp_path, made_run, given):
    run = made_run(*given, root=tmp_path / "a store")
    own = "sqlite:////nowhere.db" if given else tracking.default_uri(RunFolder.open(run).root)
    command = ["fedpgp", "track", "sync", str(run)]
    for uri, more in ((own, []), ("http://me:secret@host", ["--uri", "http://***@host"])):
        mirror = tracking.Mirror(run, uri)
        assert shlex.split(mirror.sync_command()) == command + more


def test_a_run_is_recorded_with_the_name_of_the_experiment_whose_number_is_given(tmp_path, shared_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", tracking.prepare(tmp_path, shared_uri, "by number"))
    given = config.parse({"tracking": {"uri": shared_uri}})
    assert config.absolute(tracking.MLflowTracker().settled(given)).tracking.experiment == "by number"
    off = config.parse({"tracking": {"uri": shared_uri, "mlflow": False}})
    assert tracking.MLflowTracker().settled(off) == off


def test_variables_of_mlflow_reach_the_process_that_a_tracker_is_sent_to(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "here")
    sent = pickle.dumps(tracking.MLflowTracker())
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "there")
    pickle.loads(sent)
    assert (os.environ["MLFLOW_TRACKING_TOKEN"], os.environ["MLFLOW_TRACKING_USERNAME"]) == ("secret", "there")
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")


def test_a_run_says_that_it_does_not_write_into_the_run_of_the_environment(tmp_path, shared_uri, made_run, caplog):
    experiment, folder = config.parse({"tracking": {"uri": shared_uri}}), made_run("tracking.experiment=own run")
    for value in ("", "0123"):
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("MLFLOW_RUN_ID", value)
            tracker = tracking.MLflowTracker()
            following = tracker.run(experiment)
            following.on_begin(str(folder), 0, 1)
            following.on_end(str(folder), "finished")
            tracker.close()
        said = [record.getMessage() for record in caplog.records if record.name == "fedpgp.tracking"]
        assert said == ["MLFLOW_RUN_ID is not used: every run and sweep has an MLflow run of its own"][: len(value)]
