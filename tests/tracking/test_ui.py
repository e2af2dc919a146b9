"""The user interface serves the right store and page, and ends with all its processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from fedpgp import tracking
from fedpgp.core.errors import ConfigError, RunError, UserError
from fedpgp.tracking import ui


def children(group: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


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
    code, out, _ = fedpgp("ui", tmp_path, "--no-browser")
    assert (code, out) == (0, "MLflow: http://***@host:5000   (MLFLOW_TRACKING_URI)\n")


def test_a_taken_port_is_rejected_and_the_default_falls_back_to_a_free_one(monkeypatch):
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken"):
            ui._port(port)
        monkeypatch.setattr(ui, "PORT", port)
        assert ui._port(None) not in (0, port)


def test_a_port_that_a_user_may_not_use_is_not_called_taken(as_user, shared_root):
    with as_user(1502), pytest.raises(UserError, match="port 99 may not be used by you; give another one, above 1023"):
        ui._port(99)


def test_the_page_lists_the_runs_or_else_the_experiments(tmp_path):
    uri = tracking.default_uri(tmp_path)
    made = tracking.prepare(tmp_path, uri, "mine")
    assert ui.page_of(uri) == f"/#/experiments/{made}/runs?workflowType=machine_learning"
    tracking.prepare(tmp_path, uri, "another")
    assert ui.page_of(uri) == "/#/experiments?workflowType=machine_learning"


def test_the_table_shows_searched_parameters_and_metrics_of_sweeps(tmp_path):
    uri = tracking.default_uri(tmp_path)
    made = tracking.prepare(tmp_path, uri, "mine")
    client = MlflowClient(uri)
    for key, metric in (("method.rank", "val/hm"), ("protocol.shots", "val/local")):
        sweep = client.create_run(made, tags={"fedpgp.sweep": "any"}).info.run_id
        client.log_param(sweep, f"space.{key}.grid_search", "[1, 2]")
        client.log_param(sweep, "tune.metric", metric)
        client.log_metric(sweep, metric, 50)
        client.log_metric(sweep, "test/hm", 50)
    assert ui.page_of(uri).endswith("/runs?workflowType=machine_learning&viewStateShareKey=fedpgp")
    shown = json.loads(client.get_experiment(made).tags["mlflow.sharedViewState.fedpgp"])["selectedColumns"]
    assert sorted(shown[:2]) == ["params.`method.rank`", "params.`protocol.shots`"]
    assert sorted(shown[2:]) == ["metrics.`test/hm`", "metrics.`val/hm`", "metrics.`val/local`"]


def test_mlflows_page_reads_the_view_as_it_is_written():
    """The tag is not documented. If this fails after an upgrade, see what the Share button of the new page writes."""
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    (main,) = [text for path in scripts.glob("main.*.js") if (text := path.read_text(encoding="utf-8"))]
    assert f'"{ui.VIEW_TAG_PREFIX}"' in main
    assert '="viewStateShareKey"' in main
    assert '["selectedColumns",' in main
    assert 'PARAMS:"params",METRICS:"metrics"' in main
    assert re.search(r'\(e,t\)=>e\+"\.`"\+t\+"`"', main)  # the name of a column: group.`key`
    readers = [
        text
        for path in scripts.glob("*.chunk.js")
        if "Error loading shared view state" in (text := path.read_text("utf-8"))
    ]
    assert readers
    assert all("JSON.parse(e))(t.value)" in text for text in readers)  # not compressed is allowed


@pytest.mark.slow
def test_ctrl_c_ends_the_interface_with_its_children(tmp_path):
    tracking.prepare(tmp_path, tracking.default_uri(tmp_path), "mine")
    command = [sys.executable, "-m", "fedpgp", "ui", str(tmp_path), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}) as process:
        address = process.stdout.readline().split()[1]
        address, _, page = address.partition("/#/")
        assert address.startswith("http://127.0.0.1:")
        assert page == "experiments/1/runs?workflowType=machine_learning"
        wanted = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=mine"
        with urllib.request.urlopen(wanted, timeout=60) as answer:
            assert b'"mine"' in answer.read()
        (server,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children(int(server))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert children(int(server)) == []
