"""Nodes with other versions than the driver are refused by name."""

from __future__ import annotations

import sys
import time

import pytest
import ray

from fedpgp.config import ResourceSettings
from fedpgp.core import provenance
from fedpgp.core.errors import ResourceError
from fedpgp.federation.backends import versions
from fedpgp.federation.backends.actors import ActorPool


def test_what_differs_is_named_with_both_versions(monkeypatch):
    monkeypatch.setattr(provenance, "software", lambda: {"torch": "2.14.1", "numpy": "2.4.6", "python": "3.11.7"})
    assert versions.compare({"python": "3.11.7", "torch": "2.14.1", "numpy": "2.4.6", "more": "1"}) is None
    assert (
        versions.compare({"python": "3.11.7", "torch": "2.13.0", "numpy": "1.26.4"})
        == "has torch 2.13.0 and numpy 1.26.4, the driver 2.14.1 and 2.4.6"
    )
    assert versions.compare("ModuleNotFoundError: No module named 'fedpgp'") == (
        "cannot import the driver's fedpgp (ModuleNotFoundError: No module named 'fedpgp')"
    )


def test_builds_of_a_version_for_other_devices_are_equal(monkeypatch):
    known = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: {**known, "torch": f"{known['torch']}+cu128"})
    found = provenance.software()
    assert found["torch"] == known["torch"]
    assert found["fedpgp"] == f"{known['fedpgp']} (code {provenance.code_digest()[:8]})"
    assert found.keys() == {"python", "fedpgp", "torch", "open_clip_torch", "timm", "numpy", "ray"}


def test_the_question_runs_where_fedpgp_is_missing(monkeypatch):
    """Its code is sent, not the name of a function of the package."""
    sent = ray.cloudpickle.dumps(versions._question())
    for name in [name for name in sys.modules if name.partition(".")[0] == "fedpgp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fedpgp", None)
    assert ray.cloudpickle.loads(sent)().startswith("ModuleNotFoundError: ")


def test_every_node_is_asked_once(ray_cluster, monkeypatch):
    monkeypatch.setattr(versions, "_checked", set())
    (node,) = versions.alive()
    begin = time.monotonic()
    versions.check([node], own=False)
    assert versions._checked == set()
    assert time.monotonic() - begin < 0.05  # what the start of a local Ray pays
    own = provenance.software()
    monkeypatch.setattr(provenance, "software", lambda: {**own, "torch": "2.0.0"})
    (about,) = ray.nodes()
    told = (
        f"{about['NodeManagerHostname']} ({about['NodeManagerAddress']}) has torch {own['torch']}, the driver 2.0.0: "
    )
    with pytest.raises(ResourceError) as caught:
        versions.check([node])
    assert str(caught.value) == told + "install the same version on every node"
    monkeypatch.undo()
    monkeypatch.setattr(versions, "_checked", set())
    versions.check([node, "0" * 56])  # the second one is gone
    assert versions._checked == {node}


def test_an_actor_whose_software_was_changed_meanwhile_is_refused(ray_cluster, monkeypatch):
    """Also on this process's own node, and on nodes that had the right versions before."""
    own = provenance.software()
    monkeypatch.setattr(provenance, "software", lambda: {**own, "fedpgp": "0.1.0 (code 01234567)"})
    (about,) = ray.nodes()
    with pytest.raises(ResourceError) as caught:
        ActorPool(ResourceSettings(actors=1))
    assert str(caught.value) == (
        f"{about['NodeManagerHostname']} ({about['NodeManagerAddress']}) has fedpgp {own['fedpgp']}, the driver "
        "0.1.0 (code 01234567): install the same version on every node"
    )
    monkeypatch.undo()
    ActorPool(ResourceSettings(actors=1)).close()
    with pytest.raises(ResourceError, match=r"^gone has python of another age and "):
        versions.check_answer("gone", {})
