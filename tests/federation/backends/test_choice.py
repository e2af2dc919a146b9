"""`resources.backend=auto`: this process where it is as fast, else Ray; a named backend stays."""

from __future__ import annotations

import os

import pytest
import ray

from fedpgp.config import ResourceSettings
from fedpgp.federation.backends.choice import choose


@pytest.fixture(autouse=True)
def _four_cores_and_no_cluster(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def chosen(parallel=2, in_trial=False, **resources):
    return choose(ResourceSettings(**resources), parallel, in_trial).resources.backend


def test_auto_is_the_default():
    assert ResourceSettings().backend == "auto"


@pytest.mark.parametrize("named", ["ray", "serial"])
def test_a_named_backend_stays_whatever_there_is_to_do(named, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    for parallel in (1, 100):
        choice = choose(ResourceSettings(backend=named, actors=1), parallel)
        assert (choice.resources.backend, choice.line) == (named, "")


def test_several_calls_for_several_actors_are_for_ray_and_one_is_not():
    assert [chosen(parallel) for parallel in (0, 1, 2, 100)] == ["serial", "serial", "ray", "ray"]
    assert chosen(100, actors=1) == "serial"


def test_actors_do_not_share_one_core(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert chosen(100) == "serial"
    assert chosen(100, in_trial=True) == "ray"  # it runs somewhere on the cluster


def test_gpus_are_assigned_by_ray():
    assert chosen(1, actors=1, gpus_per_actor=0.5) == "ray"


def test_a_cluster_is_used_but_a_trial_is_on_it_already(monkeypatch):
    assert chosen(1, address="auto") == "ray"
    assert chosen(1, address="auto", in_trial=True) == "serial"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert chosen(1) == "ray"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert (chosen(1), chosen(1, in_trial=True), chosen(2, in_trial=True)) == ("ray", "serial", "ray")


def test_the_choice_is_one_line_with_its_reason():
    resources = ResourceSettings(actors=4)
    assert choose(resources, 3).line == "resources.backend=auto: ray (3 actors can work at a time)"
    assert choose(resources, 1).line == "resources.backend=auto: serial (a second actor would wait for the first)"
    assert choose(resources, 3).resources == resources.model_copy(update={"backend": "ray"})
