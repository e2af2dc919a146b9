"""A server rule from outside the package that cannot work is refused in one line, before any image is read."""

from __future__ import annotations

import pytest
import torch

from fedpgp import config
from fedpgp.core.errors import ConfigError
from fedpgp.experiments import planning

HEAD = """
import torch
from fedpgp.server_rules.base import BaseRule
from fedpgp.server_rules.fedavg import FedAvg
from fedpgp.server_rules.scaffold import Scaffold
"""
AGGREGATE = "def aggregate(self, server, shared, received):\n        "
BROKEN = {
    "raises": (f"{AGGREGATE}raise KeyError('ctxx')", "aggregate raised KeyError: 'ctxx' ("),
    "one dict": (f"{AGGREGATE}return shared", "aggregate returns a dict, not two dicts of tensors"),
    "a number": (f"{AGGREGATE}return server, {{'ctx': 0.0}}",
        "part 2 of what aggregate returns is a dict, not a dict of tensors"),
    "another key": (f"{AGGREGATE}return server, {{'x': shared['ctx']}}",
        "the shared parameters from aggregate has the keys x, not ctx"),
    "another shape": (f"{AGGREGATE}return server, {{'ctx': shared['ctx'][:1]}}", "'ctx' has shape and type ((1, "),
    "another type": (f"{AGGREGATE}return server, {{'ctx': shared['ctx'].double()}}", "torch.float64"),
    "not finite": (f"{AGGREGATE}return server, {{'ctx': shared['ctx'] / 0}}",
        "the shared parameters from aggregate: 'ctx' is not finite"),
    "a state that grows": (f"{AGGREGATE}return {{'n': torch.zeros(1)}}, shared",
        "the server's state from aggregate has the keys n, not none"),
    "writes into what it is given": (f"{AGGREGATE}shared['ctx'].add_(1)\n        return server, dict(shared)",
        "aggregate changes the shared parameters that it is given; return new tensors"),
    "sends nothing": ("def broadcast(self, server, shared, clients):\n        return {}, {}",
        "broadcast does not send ctx to all clients"),
    "sends one client too much": (
        "def broadcast(self, server, shared, clients):\n        return shared, {'ctx': shared['ctx'][None]}",
        "broadcast sends 'ctx' of shape (1, "),
    "needs no kind of upload": ("uploads = 'everything'", "uploads is 'everything', not one of sum, stack"),
    "weights of no kind": ("weighting = 'size'", "weighting is 'size', not one of images, equal"),
    "no clients": ("fewest = 0", "fewest is 0, not a whole number of at least 1"),
    "no memory": ("def working_bytes(self, clients, shared):\n        return None",
        "working_bytes returns None, not bytes"),
}  # fmt: skip
KEEPS = {
    "keeps something else": (
        "def after_training(self, kept, *rest):\n        return {}, {}", "what clients keep has the keys none, not "),
    "corrects what is not there": (
        "def correction(self, kept, received):\n        return {'x': torch.zeros(3, 1)}",
        "correction has the keys x, not none"),
    "sends for one client": (
        "def after_training(self, kept, *rest):\n        return kept, {'x': torch.zeros(1)}",
        "after_training sends 'x' of shape (1,) for 3 clients"),
}  # fmt: skip


def planned(folder, body, base="FedAvg", **method):
    (folder / "broken_rule.py").write_text(f"{HEAD}\n\nclass Own{f'({base})' if base else ''}:\n    {body}\n")
    tree = {
        "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"}, "protocol": {"shots": 1},
        "partition": {"clients": 2}, "method": {"name": "promptfl", **method},
        "federation": {"server": {"name": "broken_rule:Own"}}, "storage": {"root": str(folder / "store")},
    }  # fmt: skip
    return planning.plan(config.parse(tree))


@pytest.mark.parametrize("fault", [*BROKEN, *KEEPS])
def test_what_cannot_work_is_refused_in_a_line(fault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body, message = (BROKEN | KEEPS)[fault]
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, body, "Scaffold" if fault in KEEPS else "FedAvg")
    assert message in str(refused.value)
    assert "broken_rule:Own" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "store").exists()


def test_all_missing_members_are_named_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        planned(tmp_path, "name = 'own'", base="")
    message = "federation.server.name: broken_rule:Own is not a server rule: missing "
    assert message in str(refused.value)
    for member in ("init", "broadcast", "aggregate", "working_bytes", "paper", "settings_type", "uploads"):
        assert member in str(refused.value)


def test_the_dry_call_changes_no_random_draw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    planned(tmp_path, "pass")
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)


def test_the_code_of_a_rule_is_part_of_the_identity_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = planned(tmp_path, "pass")
    again, edited = planned(tmp_path, "pass"), planned(tmp_path, "'''Edited.'''")
    assert first.plugins["federation.server"]["name"] == "broken_rule:Own"
    assert first.plugins == again.plugins != edited.plugins
    assert first.digest == again.digest != edited.digest
    keys = config.dotted(first.experiment, manifest=None, weights=None, plugins=first.plugins)
    assert keys["federation.server.code"] == first.plugins["federation.server"]["digest"]


def test_a_rule_that_works_is_planned_for_a_method_that_shares_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert planned(tmp_path, "pass", name="coop").rule.uploads == "sum"
