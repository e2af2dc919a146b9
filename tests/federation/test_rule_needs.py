"""What a server rule needs: refused before work if too few clients take part, or if memory is short."""

from __future__ import annotations

import pytest
import torch

from fedpgp import server_rules
from fedpgp.config import FederationSettings
from fedpgp.core import memory
from fedpgp.core.errors import ConfigError
from fedpgp.federation.rule_needs import check, describe, server_bytes, usual_updates

TEN = {"x": torch.zeros(10)}
MIB = 2**20


def needs(name, federation=None, **settings):
    """The rule, and the federation that has it."""
    rule = server_rules.create(name, settings)
    server = {"name": name, **rule.settings.model_dump()}
    return rule, FederationSettings.model_validate({"server": server, **(federation or {})})


@pytest.mark.parametrize(
    ("federation", "usual"),
    [({}, 10), ({"participation": 0.5}, 5), ({"participation": 0.5, "dropout": 0.3}, 4), ({"sampling": "poisson"}, 10)],
)
def test_the_usual_updates_of_a_round(federation, usual):
    assert usual_updates(FederationSettings.model_validate(federation), 10) == usual


def test_krum_needs_two_f_and_three_clients():
    check(*needs("krum", f=3), 9, TEN)
    with pytest.raises(ConfigError) as refused:
        check(*needs("krum", {"participation": 0.5}, f=3), 10, TEN)
    assert str(refused.value) == (
        "federation.server.name=krum: a round needs the updates of at least 9 clients (f=3), and usually has 5 of 10; "
        "change these settings, or let more clients take part"
    )
    with pytest.raises(ConfigError, match=r"at least 8 clients \(f=1, m=8\), and usually has 7 of 7"):
        check(*needs("multi_krum", m=8), 7, TEN)


def test_rules_for_any_number_of_clients_take_one_and_poisson_sampling():
    for name in ("fedavg", "median", "trimmed_mean", "geometric_median", "scaffold"):
        check(*needs(name, {"sampling": "poisson"}), 1, TEN)


def test_a_median_of_pfedpt_for_ten_thousand_clients_is_refused(monkeypatch):
    """11 million float32 of 10,000 clients are 410 GiB."""
    monkeypatch.setattr(memory, "total", lambda: 24 * 2**30)
    network = {"weight": torch.empty(11_000_000, device="meta")}
    check(*needs("fedadam"), 10_000, network)
    with pytest.raises(ConfigError) as refused:
        check(*needs("median"), 10_000, network)
    assert str(refused.value) == (
        "federation.server.name=median: the updates of 10,000 clients take about 409.8 GiB of memory on the server, "
        "and this machine has 24.0 GiB; give fewer clients, or a rule that needs only a sum, such as fedavg"
    )
    check(*needs("median", {"participation": 0.01}), 10_000, network)
    with pytest.raises(ConfigError, match="what it keeps of 10,000 clients take about"):
        check(*needs("scaffold", {"participation": 0.01}), 10_000, network)


def test_bytes_are_the_stack_and_what_the_rule_works_with():
    """8 clients with 1 MiB each: the stack, and four or five chunks of 8 MiB."""
    shared = {"x": torch.zeros(2**18)}
    assert server_bytes(*needs("fedavg"), 8, shared) == 0
    assert server_bytes(*needs("median", {"participation": 0.5}), 8, shared) == 4 * MIB + 5 * 8 * MIB
    assert server_bytes(*needs("krum"), 8, shared) == 8 * MIB + 4 * 8 * MIB + 8 * 8**2
    assert server_bytes(*needs("scaffold", {"participation": 0.5}), 8, shared) == (8 + 2 * 4) * MIB


def test_what_the_plan_says():
    assert describe(*needs("fedavg"), 8, TEN) is None
    assert describe(*needs("median"), 8, {}) is None
    assert describe(*needs("median"), 8, {"x": torch.zeros(2**18)}) == "server rule median: about 48.0 MiB of memory"
