"""What an experiment would need, and whether it fits."""

from __future__ import annotations

import pytest
from small_experiment import SMALL, small

from fedpgp import config
from fedpgp.cli.doctor import experiment_checks
from fedpgp.cli.doctor.findings import State, ok
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.text import memory_size
from fedpgp.experiments import estimation, launch
from fedpgp.experiments.planning import Library, plan
from fedpgp.experiments.tracker import Tracker


def of(experiment, *nodes):
    return {one.name: one for one in experiment_checks.examine(experiment, Library(), nodes)}


NODE = {"CPU": 2.0, "GPU": 0.0, "memory": 8e9}


def test_an_experiment_that_fits(tmp_path):
    experiment = small(tmp_path, "partition.clients=3")
    found = of(experiment, NODE)
    assert {name: one.state for name, one in found.items()} == dict.fromkeys(
        ("resources", "plan", "features", "memory"), State.ok
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
    launch.run(experiment, False, EventStream(said.append), Tracker())
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
