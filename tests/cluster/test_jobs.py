"""A lasting head with token authentication: jobs are submitted to it, followed, and their runs are in MLflow."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from ports import free_ports

from fedpgp.storage.run_folder import RunFolder
from fedpgp.tracking import default_uri

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[2] / "pipelines"
BIN = str(Path(sys.executable).parent)
TINY = {
    "name": "tiny",
    "data": {"name": "shapes"},
    "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"shots": 2},
    "partition": {"clients": 4},
    "method": {"name": "fedpgp", "n_ctx": 4, "rank": 2},
    "federation": {"rounds": 2},
    "resources": {"actors": 1},
}
MARK = "FEDPGP_TEST_HEAD"
GONE_SECONDS = 90


@dataclass(frozen=True)
class Head:
    """A Ray that outlives the commands of the test."""

    address: str
    dashboard: str
    env: dict[str, str]

    def command(self, *arguments, cwd, **changed):
        """Run a program of the environment beside Ray, as a person at another shell."""
        return subprocess.run(
            [f"{BIN}/python", "-m", *arguments], cwd=cwd, env={**self.env, **changed}, capture_output=True, text=True,
            timeout=400,
        )  # fmt: skip

    def submit(self, *entrypoint, cwd):
        """Submit the folder as a job and follow its logs."""
        return self.command(
            "ray.scripts.scripts", "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--",
            *entrypoint, cwd=cwd,
        )  # fmt: skip


@pytest.fixture(scope="module")
def head():
    """A head of three cores that wants a token; afterwards no process of its is left."""
    mark = uuid.uuid4().hex
    env = {**os.environ, MARK: mark, "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token"}
    port, dashboard, agent, client, metrics = free_ports(5)
    command = [
        f"{BIN}/ray", "start", "--head", "--block", "--num-cpus=3", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={port}", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(lambda: answers(f"{address}/api/version"), 120)
        yield Head(f"127.0.0.1:{port}", address, env)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        try:
            wait_for(lambda: not marked(mark), GONE_SECONDS)
        finally:
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path):
    """A folder with one script and one file of settings, and nothing else: where a job starts from."""
    path = tmp_path / "mine"
    path.mkdir()
    shutil.copy(PIPELINES / "sweep.py", path)
    sweep = {"base": TINY, "space": {"method.mu": {"grid_search": [0.0, 0.5]}}, "folds": {"seeds": [1, 2]}}
    (path / "mine.yaml").write_text(yaml.safe_dump(sweep))
    return path


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError as error:
        return error.code == 401  # it is up, and wants a token
    except OSError:
        return False
    raise AssertionError("the head asks for no token")


def marked(mark):
    """The processes that descend from the head."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} seconds"
        time.sleep(0.2)


def test_a_submitted_sweep_is_followed_and_mirrored(head, folder, tmp_path):
    root = tmp_path / "store"
    done = head.submit("python", "sweep.py", "mine.yaml", f"storage.root={root}", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials 2/2" in done.stdout
    assert f"sweep: {root}/sweeps/mine-" in done.stdout
    assert len(list(folder.iterdir())) == 2
    assert [store.state for store in RunFolder.find(root)] == ["finished"] * 4

    entries = MlflowClient(default_uri(root)).search_runs(["1"])
    assert {run.info.status for run in entries} == {"FINISHED"}
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in entries}
    depth = [1 + (parent is not None) + (parents.get(parent) is not None) for parent in parents.values()]
    assert sorted(depth) == [1, 2, 2, 3, 3, 3, 3]


def test_a_relative_root_is_refused_in_a_job(head, folder):
    refused = head.submit("python", "sweep.py", "mine.yaml", "storage.root=store", cwd=folder)
    assert refused.returncode == 1
    assert "storage.root: store is relative" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_without_the_token_there_is_advice(head, tmp_path):
    env = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    refused = head.command(
        "fedpgp", "run", "shapes", f"resources.address={head.address}", f"storage.root={tmp_path}", cwd=tmp_path, **env
    )
    assert refused.returncode == 2
    assert "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_detached_run_is_left_attached_and_stopped(head, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**TINY, "federation": {"rounds": 5000}, "tracking": {"mlflow": False}}))
    root, address = tmp_path / "store", ("--address", head.address)
    where = f"resources.address={head.address}"
    started = head.command("fedpgp", "run", str(config), "--detach", where, f"storage.root={root}", cwd=tmp_path)
    driver = started.stdout.split()[1]

    listed = head.command("fedpgp", "runs", str(root), *address, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert driver in listed.stdout

    wait_for(lambda: list(root.glob("runs/*/rounds/*2.arrow")), 120)
    (store,) = RunFolder.find(root)
    command = [f"{BIN}/python", "-m", "fedpgp", "attach", driver, *address]
    with subprocess.Popen(command, env=head.env, stderr=subprocess.PIPE, text=True) as attached:
        said = ""
        while "rounds" not in said:
            said += attached.stderr.readline()
        attached.send_signal(signal.SIGINT)
        assert f"the run continues; stop it with: fedpgp stop {driver}" in attached.stderr.read()
        assert attached.wait(60) == 130

    before = store.rounds()[-1].round
    wait_for(lambda: store.rounds()[-1].round > before + 1, 60)
    assert head.command("fedpgp", "stop", driver, *address, cwd=tmp_path).returncode == 0
    wait_for(lambda: store.state == "stopped", 60)
