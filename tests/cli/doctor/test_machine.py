"""Disk, memory, GPUs and Ray, looked at without changing them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_experiment import small

from fedpgp.cli.doctor import machine
from fedpgp.cli.doctor.findings import State, ok
from fedpgp.config import ResourceSettings


def test_gpus_that_torch_does_not_see_are_told():
    assert machine.gpus([], []).what == "none: everything runs on the CPU"
    assert machine.gpus(["A100"], ["A100"]) == ok("gpu", "A100")
    hidden = machine.gpus(["A100"], ["A100", "H100"])
    assert (hidden.state, hidden.what) == (State.warning, "torch sees 1 of 2 (A100, H100)")


def test_a_folder_that_cannot_be_written_to_is_a_problem_and_looking_leaves_nothing(tmp_path):
    found = machine.disk("disk", "runs", Path("/proc/self/fdinfo/new"))  # read-only for everyone, root too
    assert found.state is State.problem
    assert found.what.startswith("runs: nothing can be written to /proc/self/fdinfo")
    assert "storage.root" in found.advice
    assert machine.disk("disk", "runs", tmp_path / "not" / "yet").state is State.ok
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "busy", "state"),
    [(0.5e9, False, State.warning), (2e9, False, State.ok), (2e9, True, State.warning), (6e9, True, State.ok)],
)
def test_a_disk_that_is_nearly_full_is_a_warning(monkeypatch, tmp_path, free, busy, state):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"total": 1e11, "free": free}))
    assert machine.disk("disk", "runs", tmp_path, busy).state is state


def test_free_memory_is_at_most_that_of_the_machine():
    assert 0 < machine.free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_container_has_no_more_than_its_limit(monkeypatch):
    monkeypatch.setattr(
        "fedpgp.core.provenance.lines", lambda path: ["MemAvailable: 2000 kB"] if "proc" in path else ["1000"]
    )
    assert machine.free_memory() == 1000


@pytest.fixture
def no_ray(monkeypatch):
    """As if no test had started one; whoever starts one now fails."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **settings: pytest.fail("ray is started"))


@pytest.mark.usefixtures("no_ray")
def test_without_a_cluster_ray_is_not_started(tmp_path):
    found, (node,) = machine.ray(small(tmp_path, "resources.backend=ray", "resources.actors=64").resources)
    assert (found.state, node["CPU"]) == (State.ok, 64)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_a_problem_at_once(address):
    found, nodes = machine.ray(ResourceSettings(address=address))
    assert (found.name, found.state, nodes) == ("ray", State.problem, [])
    assert f"Ray at {address}: [Errno 111] Connection refused; check that the head runs" in found.what


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_counted(tmp_path):
    found, nodes = machine.ray(small(tmp_path, "resources.backend=ray").resources)
    assert found.what.startswith("a cluster of 1 node(s) with 4 CPU, 2 GPU, ")
    assert len(nodes) == 1
