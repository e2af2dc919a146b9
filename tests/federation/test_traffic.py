"""Bytes that one client sends and receives in a round, by its server rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp import methods, server_rules
from fedpgp.config import FederationSettings
from fedpgp.core.tree import num_bytes
from fedpgp.federation import traffic
from fedpgp.server_rules.base import BaseRule, RuleSettings

TEN = {"x": torch.zeros(10), "y": torch.ones(2, 3)}


@pytest.mark.parametrize("name", [name for name in server_rules.REGISTRY.built_in if name != "scaffold"])
def test_a_rule_sends_the_shared_parameters_both_ways(name):
    """16 float32: 64 bytes; also after a round."""
    rule = server_rules.create(name, {})
    assert num_bytes(traffic.sent(rule, rule.init(TEN, 5), TEN)) == 64
    for server in (rule.init(TEN, 5), traffic.after_a_round(rule, TEN, 5)):
        assert traffic.bytes_down(rule, server, TEN) == 64


def test_scaffold_sends_as_much_again():
    rule = server_rules.create("scaffold", {})
    assert traffic.sent(rule, rule.init(TEN, 5), TEN).keys() == {"x", "y", "control.x", "control.y"}
    assert num_bytes(traffic.sent(rule, rule.init(TEN, 5), TEN)) == 128
    for server in (rule.init(TEN, 5), traffic.after_a_round(rule, TEN, 5)):
        assert traffic.bytes_down(rule, server, TEN) == 128


def test_padding_is_counted_only_where_it_is_asked_for():
    """pFedMoAP: a client without a prompt of its own receives none; room for the 4 others' has 40 bytes each, and 8."""
    ten = {"ctx": torch.zeros(1, 10)}
    rule = methods.create("pfedmoap", {}).server_rule(FederationSettings())
    first, later = rule.init(ten, 5), traffic.after_a_round(rule, ten, 5)
    assert traffic.bytes_down(rule, first, ten) == 40
    assert traffic.bytes_down(rule, later, ten) == 40 + 4 * 40
    assert traffic.bytes_down(rule, first, ten, padded=True) == 40 + 4 * 48


class Exchange(BaseRule):
    """Sends to each client what all others have sent before."""

    name, paper, uploads = "exchange", "", "stack"

    def init(self, shared, num_clients):
        return {"pool": torch.zeros(0, 10)}

    def broadcast(self, server, shared, clients):
        pool = server["pool"]
        others = torch.stack([pool[torch.arange(len(pool)) != client] for client in clients])
        return shared, {"others": others}

    def aggregate(self, server, shared, received):
        assert received.num_clients == len(received.clients) == len(received.weights)
        return {"pool": received.stack["x"]}, shared


def test_what_is_sent_to_each_client_alone_counts():
    """Of 4 clients each gets the 3 others' 10 float32, 120 bytes, beside the shared 64."""
    rule = Exchange(RuleSettings())
    assert traffic.bytes_down(rule, rule.init(TEN, 4), TEN) == 64
    server = traffic.after_a_round(rule, TEN, 4)
    assert np.array_equal(server["pool"].shape, (4, 10))
    assert traffic.bytes_down(rule, server, TEN) == 64 + 120
