"""The machine, looked at without changing it; what an experiment would need, and whether it fits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_experiment import SMALL, small

from fedpgp import config
from fedpgp.cli.doctor import experiment_checks
from fedpgp.cli.doctor.findings import State, ok
from fedpgp.config import ResourceSettings
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.text import memory_size
from fedpgp.experiments import estimation, launch
from fedpgp.experiments.planning import plan
from fedpgp.experiments.tracker import NoTracking


def of(experiment, *nodes):
    return {one.name: one for one in experiment_checks.examine(experiment, nodes)}


NODE = {"CPU": 2.0, "GPU": 0.0, "memory": 8e9}


def test_an_experiment_that_fits(tmp_path):
    experiment = small(tmp_path, "partition.clients=3")
    found = of(experiment, NODE)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("data", "resources", "plan", "features", "memory"), State.ok
    )
    assert found["plan"].what.startswith("fedpgp on tiny: 3 clients, 15 classes to train on (")
    images = len(plan(experiment).data.rows)
    assert found["features"].what.startswith(f"{images:,} images to encode into {tmp_path}/features, ")
    assert list(tmp_path.iterdir()) == []
    launch.extract(experiment, RunCallback())
    assert of(experiment, NODE)["features"] == ok("features", "all there")


def test_the_memory_forecast_equals_what_the_run_reports(tmp_path):
    experiment, said = small(tmp_path), []
    told = estimation.of_memory(plan(experiment))
    launch.run(experiment, False, EventStream(said.append), NoTracking())
    assert any(f"about {memory_size(told)} of memory each" in str(event.arguments) for event in said)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("pooled, views", ["data.views=3"]), ("patches", ["method.name=fedotp"]), ("pixels", ["method.name=pfedpt"])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_memory_is_measured_whatever_the_features_are(tmp_path, name, overrides):
    experiment = config.absolute(config.load("shapes", [*SMALL[:2], *overrides, f"storage.root={tmp_path}"]))
    assert estimation.of_memory(plan(experiment)) > 2**29
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_train_needs_no_memory(tmp_path):
    experiment = config.load("shapes", [*SMALL[:2], "method.name=zero_shot", f"storage.root={tmp_path}"])
    assert of(experiment, NODE)["memory"] == ok("memory", "zero_shot trains nothing")


def test_an_impossible_request_is_a_problem_and_cores_that_take_turns_a_warning(tmp_path):
    wanted = small(tmp_path, "resources.backend=ray", "resources.actors=3", "resources.gpus_per_actor=0.5").resources
    short = experiment_checks.resources(wanted, [NODE])
    assert (short.name, short.state) == ("resources", State.problem)
    assert "3 actors x (1 CPU, 0.5 GPU) need 3 CPU and 1.5 GPU; the cluster has 2 CPU and 0 GPU" in short.what
    many = small(tmp_path, "resources.backend=ray", "resources.actors=500").resources
    assert experiment_checks.resources(many, [{"CPU": 500.0}]).state is State.warning


def test_too_little_memory_is_a_problem(tmp_path):
    found = of(small(tmp_path), {**NODE, "memory": 2**20})["memory"]
    assert found.state is State.problem
    assert "1 x about" in found.what
    assert "but 1.0 MiB are free" in found.what


def test_memory_of_gpus_is_not_judged(tmp_path):
    wanted = of(small(tmp_path, "resources.gpus_per_actor=1"), {**NODE, "memory": 1e6})["memory"]
    assert (wanted.state, wanted.what.partition(" on ")[2]) == (
        State.ok, "shares of GPUs, with whose memory it was not compared"
    )  # fmt: skip


def test_too_little_disk_for_the_features_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e9, "free": 10}))
    found = of(small(tmp_path), NODE)["features"]
    assert found.state is State.problem
    assert found.what.endswith("but 10 bytes are free")


def test_a_torn_cache_of_the_plan_is_its_features_problem(tmp_path):
    experiment = small(tmp_path)
    (path,) = launch.extract(experiment, RunCallback())
    path.write_bytes(path.read_bytes()[:-10])
    found = of(experiment, NODE)["features"]
    assert (found.state, str(path) in found.what) == (State.problem, True)


def test_every_domain_in_turn_is_looked_at_with_the_first_held_out(tmp_path):
    held_out = ["protocol.name=leave_one_domain_out", "protocol.held_out=all", "partition.scheme=domain"]
    found = of(small(tmp_path, *held_out, "partition.clients=null"), NODE)
    assert found["plan"].what.startswith("fedpgp on tiny: 2 clients")


def test_gpus_that_torch_does_not_see_are_told():
    assert experiment_checks.gpus([], []).what == "none: everything runs on the CPU"
    assert experiment_checks.gpus(["A100"], ["A100"]) == ok("gpu", "A100")
    hidden = experiment_checks.gpus(["A100"], ["A100", "H100"])
    assert (hidden.state, hidden.what) == (State.warning, "torch sees 1 of 2 (A100, H100)")


def test_a_folder_that_cannot_be_written_to_is_a_problem_and_looking_leaves_nothing(tmp_path):
    found = experiment_checks.disk("disk", "runs", Path("/proc/self/fdinfo/new"))  # read-only for everyone, root too
    assert found.state is State.problem
    assert found.what.startswith("runs: nothing can be written to /proc/self/fdinfo")
    assert "storage.root" in found.advice
    assert experiment_checks.disk("disk", "runs", tmp_path / "not" / "yet").state is State.ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "busy", "state"),
    [(0.5e9, False, State.warning), (2e9, False, State.ok), (2e9, True, State.warning), (6e9, True, State.ok)],
)
def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch, tmp_path, free, busy, state):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e11, "free": free}))
    assert experiment_checks.disk("disk", "runs", tmp_path, busy).state is state


def test_free_memory_is_at_most_that_of_the_machine():
    assert 0 < experiment_checks.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_container_has_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(
        "fedpgp.core.provenance.lines", lambda path: ["MemAvailable: 2000 kB"] if "proc" in path else ["1000"]
    )
    assert experiment_checks.free_memory() == 1000


@pytest.fixture
def no_ray(monkeypatch):
    """As if no test had started one; whoever starts one now fails."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **settings: pytest.fail("ray is started"))


@pytest.mark.usefixtures("no_ray")
def test_without_a_cluster_ray_is_not_started(tmp_path):
    found, (node,) = experiment_checks.ray(small(tmp_path, "resources.backend=ray", "resources.actors=64").resources)
    assert (found.state, node["CPU"]) == (State.ok, 64)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_a_problem_at_once(address):
    found, nodes = experiment_checks.ray(ResourceSettings(address=address))
    assert (found.name, found.state, nodes) == ("ray", State.problem, [])
    assert f"Ray at {address}: [Errno 111] Connection refused; check that the head runs" in found.what


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_counted(tmp_path):
    found, nodes = experiment_checks.ray(small(tmp_path, "resources.backend=ray").resources)
    assert found.what.startswith("a cluster of 1 node(s) with 4 CPU, 2 GPU, ")
    assert len(nodes) == 1
