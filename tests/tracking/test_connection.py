"""Experiments that were deleted or are given by number, and errors of a store whose message says what helps."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

import pytest

from fedpgp import tracking
from fedpgp.core.errors import ConfigError, FedPGPError
from fedpgp.tracking import connection
from fedpgp.tracking.writers import run_writer


def test_a_deleted_experiment_is_restored_with_its_runs(tmp_path, shared_uri, shared_client, made_run, caplog):
    runs = [made_run(f"seed={seed}", "tracking.experiment=deleted", root=tmp_path) for seed in (1, 2)]
    first = tracking.sync_run(runs[0], shared_uri)
    experiment = shared_client.get_experiment_by_name("deleted").experiment_id
    shared_client.delete_experiment(experiment)
    for _ in range(2):
        second = tracking.sync_run(runs[1], shared_uri)
    assert {run.info.run_id for run in shared_client.search_runs([experiment])} == {first, second}
    said = [record.getMessage() for record in caplog.records if record.name == "fedpgp.tracking"]
    assert said == [
        f"MLflow at {shared_uri}: experiment 'deleted' was deleted; it is restored with all its runs, also those that "
        "were deleted singly"
    ]


def test_one_that_was_removed_for_good_is_made_anew(tmp_path, shared_uri, shared_client, caplog):
    first = tracking.prepare(tmp_path, shared_uri, "removed")
    shared_client.delete_experiment(first)
    shared_client._tracking_client.store._hard_delete_experiment(first)
    made = tracking.prepare(tmp_path, shared_uri, "removed")
    assert shared_client.get_experiment(made).lifecycle_stage == "active"
    assert [record for record in caplog.records if record.name == "fedpgp.tracking"] == []


def test_the_experiment_is_deleted_while_a_run_is_mirrored(tmp_path, shared_uri, shared_client, made_run):
    run = made_run("tracking.experiment=meanwhile", root=tmp_path, state="running", test_local=[50])
    writer = run_writer(run, shared_uri, None)
    writer.push()
    experiment = shared_client.get_experiment_by_name("meanwhile").experiment_id
    shared_client.delete_experiment(experiment)
    writer._sent[writer.run_id] = -1  # as if there were a new round
    with pytest.raises(FedPGPError, match="active"):
        writer.push()
    assert tracking.sync_run(run, shared_uri) == writer.run_id
    assert [one.info.run_id for one in shared_client.search_runs([experiment])] == [writer.run_id]


def test_an_experiment_is_found_by_its_number(tmp_path, shared_uri, monkeypatch):
    number = tracking.prepare(tmp_path, shared_uri, "numbered")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    assert connection.experiment_name(shared_uri, None) == "numbered"
    assert connection.experiment_name(shared_uri, "given") == "given"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    assert connection.experiment_name(shared_uri, None) == "named"


@pytest.mark.parametrize("number", ["987654", "x"])
def test_a_number_without_an_experiment_is_refused(tmp_path, shared_uri, monkeypatch, number):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    for uri in (shared_uri, tracking.default_uri(tmp_path)):
        with pytest.raises(ConfigError, match=rf"^MLFLOW_EXPERIMENT_ID={number}: MLflow at \S+ has no such experiment"):
            connection.experiment_name(uri, None)
    assert not list(tmp_path.iterdir())


def test_a_number_that_cannot_be_looked_up(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("no database " * 20)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "3")
    with pytest.raises(FedPGPError, match=r"damaged; .*; MLFLOW_EXPERIMENT_ID=3 cannot be looked up: give tracking"):
        connection.experiment_name(tracking.default_uri(tmp_path), None)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Detected out-of-date database schema (found version ffff, but expected ab). Run x.", "a newer MLflow than"),
        ("Detected out-of-date database schema (found version 7f2a7d5fae7d, but expected ab).", "mlflow db upgrade sq"),
        ("API request failed with error code 401 != 200. Response body: 'no'", "; set MLFLOW_TRACKING_USERNAME and"),
    ],
)
def test_errors_that_do_not_pass_say_what_helps(message, advice):
    with pytest.raises(FedPGPError) as caught, connection.mlflow_errors("sqlite:////a/b.db"):
        raise ValueError(message)
    assert advice in str(caught.value)


def test_a_damaged_file_is_to_be_moved_away():
    with pytest.raises(FedPGPError, match="damaged; move it away"), connection.mlflow_errors("sqlite:////a/b.db"):
        raise ValueError("x") from sqlite3.DatabaseError("file is not a database")


def test_a_file_that_another_program_has_locked_is_to_be_tried_again(tmp_path):
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other, closing(sqlite3.connect(path, 0)) as own:
        other.execute("begin exclusive")
        with pytest.raises(FedPGPError) as caught, connection.mlflow_errors(f"sqlite:///{path}"):
            own.execute("create table runs (id integer)")
    said = "database is locked: another program is writing to it; try again when that has ended"
    assert str(caught.value) == f"MLflow at sqlite:///{path}: {said}"


def test_a_database_that_does_not_answer_is_found_at_once(tmp_path):
    uri, began = "postgresql+psycopg2://me:planted@127.0.0.1:9/runs", time.monotonic()
    with pytest.raises(FedPGPError, match=r"^MLflow at postgresql\+psycopg2://\*\*\*@127.0.0.1:9/runs: ") as caught:
        tracking.prepare(tmp_path, uri, "any")
    assert time.monotonic() - began < 10  # MLflow alone tries for 100 seconds
    assert "refused" in str(caught.value)
    assert "planted" not in str(caught.value)
    assert "\n" not in str(caught.value)
