"""A local Ray starts while a run is planned: errors of the plan come first, and no process is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from fedpgp.bench.measurement import descendants
from fedpgp.config import ResourceSettings
from fedpgp.core.errors import ResourceError
from fedpgp.federation.backends.local_ray import LocalRay
from fedpgp.storage.run_folder import RunFolder

BAD_PLAN = ["backbone.weights=/none/model.pt", "backbone.activation=gelu"]
PLAN_ERROR = "error: backbone.weights: no such file: /none/model.pt\n"


def command(root, *overrides):
    return [
        sys.executable, "-m", "fedpgp", "run", "shapes", "resources.backend=ray", "tracking.mlflow=false",
        f"storage.root={root}", *overrides,
    ]  # fmt: skip


def living(processes):
    """Those that have not ended; one that nobody has waited for has."""
    found = []
    for pid, name in processes.items():
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(name)
        except OSError:
            pass
    return found


@pytest.mark.parametrize("bad_plan", [True, False])
def test_an_error_of_the_plan_comes_before_one_of_ray(tmp_path, bad_plan):
    env = {**os.environ, "RAY_TMPDIR": "rel"}
    given = command(tmp_path / "store", *(BAD_PLAN if bad_plan else []))
    done = subprocess.run(given, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    told = PLAN_ERROR if bad_plan else "RAY_TMPDIR: Ray cannot start in rel: the path "
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert ("Ray" in done.stderr) != bad_plan
    assert not list(tmp_path.glob("store/runs/*"))


@pytest.mark.slow
def test_a_plan_that_fails_while_ray_starts_leaves_no_process(tmp_path):
    with subprocess.Popen(command(tmp_path / "store", *BAD_PLAN), stderr=subprocess.PIPE, text=True) as process:
        started = {}
        while process.poll() is None:
            started |= {pid: name for pid, name in descendants(process.pid).items() if name}
            time.sleep(0.02)
        assert process.stderr.read().endswith(PLAN_ERROR)
    assert process.returncode == 2
    assert any("raylet" in name for name in started.values())
    deadline = time.monotonic() + 30
    while (left := living(started)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


@pytest.mark.usefixtures("ray_cluster")
def test_an_error_of_the_start_is_raised_where_the_actors_are_needed():
    with LocalRay(ResourceSettings(actors=900)) as workers, pytest.raises(ResourceError, match="900 actors"):
        workers.load(None)


@pytest.mark.usefixtures("ray_cluster")
def test_left_early_it_waits_for_no_actor():
    """Three of these actors fit the cluster, and none of them is ever asked for anything."""
    with LocalRay(ResourceSettings(actors=3)) as workers:
        pass
    assert not workers._thread.is_alive()


SMALL = [
    "protocol.shots=1", "partition.clients=4", "federation.block_size=2", "federation.rounds=3", "method.n_ctx=1",
    "method.rank=1", "federation.local_epochs=1", "resources.actors=2", "--resume",
]  # fmt: skip


def numbers(root):
    """Rows and last parameters of the only run."""
    (store,) = RunFolder.find(root)
    last = max((store.path / "checkpoints").iterdir())
    rows = [(row.round, dict(row.metrics)) for row in store.rounds()]
    return rows, store.clients().to_pydict(), {key: value.tobytes() for key, value in load_file(last).items()}


@pytest.mark.slow
def test_a_run_on_a_local_ray_that_is_killed_resumes_to_the_bits_of_one_process(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    subprocess.run([*command(here, *SMALL), "resources.backend=serial"], check=True, capture_output=True)
    with subprocess.Popen(command(there, *SMALL), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not list(there.glob("runs/*/rounds/000001.arrow")) and process.poll() is None:
            time.sleep(0.002)
        started = descendants(process.pid)
        process.kill()
    done = subprocess.run(command(there, *SMALL), check=True, capture_output=True, text=True)
    assert "on 2 actors x (1 CPU, 0 GPU)" in done.stderr
    assert numbers(there) == numbers(here)
    deadline = time.monotonic() + 90  # Ray's agents notice after up to 80 s that the rest has ended
    while (left := living(started)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []
