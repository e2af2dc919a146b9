"""The user interface serves the right store and page, and is a single process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from mlflow.server import constants
from mlflow.tracking import MlflowClient

from fedpgp import tracking
from fedpgp.core.errors import ConfigError, RunError, UserError
from fedpgp.tracking import ui


def test_a_folder_without_a_store_is_rejected(tmp_path):
    with pytest.raises(RunError, match=r"no MLflow store here.*fedpgp track sync"):
        ui.store_of(tmp_path)


def test_the_store_of_the_environment_is_shown(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").touch()
    assert ui.store_of(tmp_path) == tracking.default_uri(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    with pytest.raises(RunError, match=f"^MLFLOW_TRACKING_URI: {tmp_path}/mine.db: no MLflow store here"):
        ui.store_of(tmp_path)
    (tmp_path / "mine.db").touch()
    assert ui.store_of(tmp_path) == f"sqlite:///{tmp_path}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://x")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: nonsense://x: "):
        ui.store_of(tmp_path)


def test_a_store_is_built_from_the_rows_at_a_uri(made_run, tmp_path, monkeypatch):
    run = made_run("method.name=coop", root=tmp_path / "kept", test_hm=[50, 60], val_hm=[51, 61])
    place = (tmp_path / "kept").as_uri()
    for _ in range(2):
        store, told = ui.store_at(place)
        assert told == f"built from 1 runs and sweeps at {place}, without what they have learned"
        client = MlflowClient(store)
        (found,) = client.search_runs([client.get_experiment_by_name("fedpgp").experiment_id])
        assert (found.info.run_name, found.info.status, found.data.metrics["test/hm"]) == (run.name, "FINISHED", 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    assert ui.store_at(place)[0] == "http://me:secret@host:5000"


def test_a_server_of_the_environment_is_named_instead_of_served(fedpgp, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, out, err = fedpgp("ui", tmp_path, "--no-browser")
    assert (code, out) == (0, "MLflow: http://***@host:5000   (MLFLOW_TRACKING_URI)\n")
    assert err.startswith("no views: MLflow at http://***@host:5000: ")


def test_a_taken_port_is_rejected_and_the_default_falls_back_to_a_free_one(monkeypatch):
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken"):
            ui._bound(port)
        monkeypatch.setattr(ui, "PORT", port)
        with ui._bound(None) as other:
            assert other.getsockname()[1] not in (0, port)


def test_two_that_start_at_once_have_different_ports(monkeypatch):
    with socket.socket() as free:
        free.bind((ui.HOST, 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(ui, "PORT", port)
    with ui._bound(None) as first, ui._bound(None) as second:
        assert (first.getsockname()[1], second.getsockname()[1] != port) == (port, True)


def test_a_port_that_a_user_may_not_use_is_not_called_taken(as_user, shared_root):
    with as_user(1502), pytest.raises(UserError, match="port 99 may not be used by you; give another one, above 1023"):
        ui._bound(99)


def test_mlflow_reads_the_variables_that_are_set_for_it():
    """They are not documented. If this fails after an upgrade, see what `mlflow server` sets."""
    names = constants.BACKEND_STORE_URI_ENV_VAR, constants.REGISTRY_STORE_URI_ENV_VAR, constants.ARTIFACT_ROOT_ENV_VAR
    assert names == (ui.STORE, ui.REGISTRY, ui.ARTIFACTS)


def status_of(address):
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_it_is_one_process_that_ctrl_c_ends(tmp_path, made_run):
    run = made_run(root=tmp_path, test_hm=[50])
    tracking.sync_run(run, tracking.default_uri(tmp_path))
    command = [sys.executable, "-m", "fedpgp", "ui", str(tmp_path), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}) as process:
        first, second = process.stdout.readline(), process.stdout.readline()
        address, _, page = first.split()[1].partition("/#/")
        assert address.startswith("http://127.0.0.1:")
        assert page.startswith("experiments/1/runs?")
        assert second == f"  Single runs: {address}/#/{page}\n"
        wanted = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=fedpgp"
        with urllib.request.urlopen(wanted, timeout=60) as answer:
            assert b'"fedpgp"' in answer.read()
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        assert status_of(f"{address}/ajax-api/3.0/mlflow/assistant/config") == 404
        assert status_of(f"{address}/ajax-api/3.0/mlflow/server-info") == 200
        request = urllib.request.Request(address, headers={"Host": "elsewhere.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=60)
        assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == ""
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
