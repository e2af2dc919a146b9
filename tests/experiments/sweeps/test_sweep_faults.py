"""Sweeps that are killed, stopped, run twice at once, out of disk, or without their tracking server."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient
from s3_server import SECRET, serving
from tiny_sweep import tiny_base

from fedpgp import tracking
from fedpgp.bench.measurement import descendants
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder

pytestmark = pytest.mark.slow

BASE = tiny_base(rounds=8)
ACTORS = {"actors": 1, "cpus_per_actor": 0.5}
"""Resources of a sweep whose trials have an actor each; those of the others compute in their process, the same bits."""
PATIENCE = 400


class Command:
    """`fedpgp sweep` on one store, in a process of its own."""

    def __init__(
        self, root, *arguments, name="mine", rates=(0.1, 0.05, 0.02), environment=None, given=None, tune=None, **base
    ):
        self.root = root
        root.mkdir(exist_ok=True, parents=True)
        file = root / f"{name}.yaml"
        tree = {**BASE, "storage": {"root": str(root)}, **base}
        space = {"federation.lr": {"grid_search": list(rates)}}
        folds, tune = {"seeds": [1, 2]}, tune or {"max_concurrent": 2}
        file.write_text(yaml.safe_dump({"base": tree, "space": space, "folds": folds, "tune": tune}))
        self.output = root / f"{name}-{time.monotonic_ns()}.log"
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedpgp", "sweep", given or str(file), *arguments],
                stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})},
            )  # fmt: skip

    def until(self, reached):
        """Wait for something to be seen on disk while it runs."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def wait(self):
        return self.process.wait(PATIENCE)

    def kill(self):
        """The whole tree, at once."""
        for pid in (self.process.pid, *descendants(self.process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()

    @property
    def text(self):
        return self.output.read_text()


def committed(root):
    return len(list(root.glob("runs/*/rounds/*.arrow")))


def ended(root):
    return len(list(root.glob("sweeps/*/trials/*.json")))


def numbers(root):
    """What each run measured, by what it is: a run that is there twice makes two entries."""
    found = [RunFolder.open(path) for path in sorted((root / "runs").glob("[!.]*"))]
    assert {store.state for store in found} == {"finished"}
    measured = [
        (store.identity["config_digest"], [(row.round, dict(row.metrics)) for row in store.rounds()]) for store in found
    ]
    return sorted(measured, key=lambda one: one[0])


def entries(root, uri=None):
    client = MlflowClient(uri or tracking.default_uri(root))
    return client, list(client.search_runs([client.get_experiment_by_name("fedpgp").experiment_id]))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    command = Command(tmp_path_factory.mktemp("undisturbed"))
    assert command.wait() == 0, command.text
    return numbers(command.root)


def test_a_sweep_killed_three_times_resumes_to_the_same_numbers(tmp_path, undisturbed):
    root = tmp_path / "store"
    for reached in (lambda: committed(root) >= 3, lambda: ended(root) >= 1, lambda: ended(root) >= 2):
        command = Command(root, "--resume", resources=ACTORS)
        command.until(reached)
        command.kill()
        assert SweepFolder.find(root)[0].state == "interrupted"
    last = Command(root, "--resume", resources=ACTORS)
    assert last.wait() == 0, last.text
    assert numbers(root) == undisturbed
    (folder,) = SweepFolder.find(root)
    assert [result.state for result in folder.results().values()] == ["finished"] * 3
    client, found = entries(root)
    assert Counter(entry.info.status for entry in found) == {"FINISHED": 1 + 3 + 6}
    for entry in found:
        if entry.info.run_name.startswith("seed"):
            steps = [point.step for point in client.get_metric_history(entry.info.run_id, "val/hm")]
            assert steps == list(range(1, 9))
    assert not list(root.rglob(".tmp-*"))


def test_a_search_killed_twice_suggests_what_it_would_have_suggested(tmp_path):
    """Two metrics, seven learning rates, five trials one at a time; finished trials are not repeated."""
    rates = (0.1, 0.07, 0.05, 0.03, 0.02, 0.01, 0.005)
    tune = {"search": "optuna", "num_samples": 5, "metric": ["val/local", "val/novel"]}
    whole = Command(tmp_path / "whole", rates=rates, tune=tune)
    assert whole.wait() == 0, whole.text
    root = tmp_path / "store"
    made = {}
    for reached in (1, 3):
        command = Command(root, "--resume", rates=rates, tune=tune, resources=ACTORS)
        command.until(lambda reached=reached: ended(root) >= reached)
        command.kill()
        (folder,) = SweepFolder.find(root)
        assert folder.state == "interrupted"
        made |= {run.run: run.fold for result in folder.results().values() for run in result.folds}
    last = Command(root, "--resume", rates=rates, tune=tune, resources=ACTORS)
    assert last.wait() == 0, last.text
    assert numbers(root) == numbers(tmp_path / "whole")
    (folder,), (undisturbed,) = SweepFolder.find(root), SweepFolder.find(tmp_path / "whole")
    assert [one.point for one in folder.suggestions] == [one.point for one in undisturbed.suggestions]
    assert [trial.id for trial in folder.front()] == [trial.id for trial in undisturbed.front()]
    assert made.keys() <= {run.run for result in folder.results().values() for run in result.folds}
    assert Counter(entry.info.status for entry in entries(root)[1]) == {"FINISHED": 1 + 5 + 10}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_stops_a_sweep_and_resume_continues_it(tmp_path, undisturbed, number):
    root = tmp_path / "store"
    command = Command(root, resources=ACTORS)
    command.until(lambda: ended(root) >= 1)
    below = descendants(command.process.pid)
    command.process.send_signal(number)
    assert command.wait() == 130, command.text
    assert "--resume" in command.text
    assert "Traceback" not in command.text
    assert [name for pid, name in below.items() if alive(pid)] == []
    (folder,) = SweepFolder.find(root)
    assert folder.state == "stopped"
    assert {result.state for result in folder.results().values()} == {"finished"}
    assert {RunFolder.open(path).state for path in (root / "runs").glob("[!.]*")} <= {"finished", "stopped"}
    assert "RUNNING" not in {entry.info.status for entry in entries(root)[1]}
    assert (again := Command(root, "--resume", resources=ACTORS)).wait() == 0, again.text
    assert numbers(root) == undisturbed


def alive(pid, seconds=20):
    """Whether a process is still there after so long."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return Path(f"/proc/{pid}/stat").exists()


def test_concurrent_sweeps_run_shared_trials_once(tmp_path, undisturbed):
    root = tmp_path / "store"
    both = [Command(root, name="one"), Command(root, name="two", rates=(0.02, 0.01, 0.05))]
    for command in both:
        assert command.wait() == 0, command.text
    found = numbers(root)
    assert len(found) == len({digest for digest, _ in found}) == 8
    assert [one for one in found if one in undisturbed] == undisturbed
    statuses = Counter(entry.info.status for entry in entries(root)[1])
    assert statuses == {"FINISHED": 2 + 6 + 12}  # a shared fold stands under the trials of both


FULL_DISK = f"""
import errno, os
from fedpgp.core import files

whole = files.write_durably

def write_durably(path, content):
    if os.path.exists({{flag!r}}):
        raise OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}), str(path))
    whole(path, content)

files.write_durably = write_durably
"""


def test_a_full_disk_ends_a_sweep_with_advice_and_keeps_the_rows(tmp_path, undisturbed):
    """Every process is made to find the disk full while a file is there."""
    root, flag = tmp_path / "store", tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK.format(flag=str(flag)))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = Command(root, environment={"PYTHONPATH": path})
    command.until(lambda: ended(root) >= 1)
    flag.touch()
    assert command.wait() == 1, command.text
    assert command.text.replace("\n", " ").count(f"{root}: disk full") == 1
    assert "--resume" in command.text
    assert committed(root) >= 16
    flag.unlink()
    assert (again := Command(root, "--resume")).wait() == 0, again.text
    assert numbers(root) == undisturbed


def test_without_its_tracking_server_a_sweep_finishes_and_is_synced_later(tmp_path, undisturbed):
    root = tmp_path / "store"
    command = Command(
        root, tracking={"uri": "http://127.0.0.1:9"}, environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    )
    assert command.wait() == 0, command.text
    assert command.text.count("MLflow at http://127.0.0.1:9") == 1
    assert "Retrying" not in command.text
    assert f"fedpgp track sync {root}" in command.text.replace("\n", "")
    assert numbers(root) == undisturbed
    uri = tracking.default_uri(root)
    for _ in range(2):
        list(tracking.sync_all(root, uri))
        assert Counter(entry.info.status for entry in entries(root)[1]) == {"FINISHED": 1 + 3 + 6}


def test_a_killed_sweep_continues_on_another_machine_with_nothing_but_its_uri(tmp_path, undisturbed):
    here, kept, home = tmp_path / "here", tmp_path / "kept", tmp_path / "home"
    begun = Command(here, storage={"root": str(here), "uri": kept.as_uri()})
    begun.until(lambda: ended(kept) >= 1 and committed(kept) >= 20)
    begun.kill()
    shutil.rmtree(here)
    (sweep,) = (kept / "sweeps").glob("[!.]*")
    assert SweepFolder.open(sweep).status["state"] == "running"
    finished = {path.name: path.stat().st_mtime_ns for path in kept.glob("runs/*/summary.json")}
    other = {"HOME": str(home)}
    last = Command(tmp_path / "logs", "--resume", given=sweep.as_uri(), environment=other, tracking={"mlflow": False})
    assert last.wait() == 0, last.text
    assert numbers(kept) == undisturbed
    assert SweepFolder.open(sweep).state == "finished"
    assert [result.state for result in SweepFolder.open(sweep).results().values()] == ["finished"] * 3
    assert finished.items() <= {path.name: path.stat().st_mtime_ns for path in kept.glob("runs/*/summary.json")}.items()
    (root,) = (home / ".cache" / "fedpgp").glob("*-kept-*")
    assert numbers(root) == undisturbed
    assert not list(kept.rglob(".claims/*"))


def test_a_sweep_whose_object_store_refuses_it_stops_and_resumes(tmp_path, undisturbed):
    root = tmp_path / "store"
    with serving() as server:
        storage = {"root": str(root), "uri": server.uri("kept")}
        command = Command(root, storage=storage)
        command.until(lambda: ended(root) >= 1)
        server.refusal = 403, "ExpiredToken"
        assert command.wait() == 1, command.text
        told = " ".join(command.text.split())
        assert "error: s3://bucket/kept/" in told
        assert "the credentials are wrong or have expired" in told
        assert re.search("[12] of 3 trials left; what is stored there is kept, continue with --resume", told)
        assert "Traceback" not in told
        assert SECRET not in told
        server.refusal = None
        assert (again := Command(root, "--resume", storage=storage)).wait() == 0, again.text
        assert numbers(root) == undisturbed
