"""Momentum that clients keep from round to round: hand-worked rounds with steps of 0.5 and momentum 0.5."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp import methods, server_rules
from fedpgp.config import FederationSettings
from fedpgp.core import memory
from fedpgp.core.errors import ConfigError
from fedpgp.federation import rule_needs
from fedpgp.federation.absence import lost
from fedpgp.federation.cohorts import sample_clients
from fedpgp.methods.base import Phase

KEPT = {"momentum": 0.5, "keep_momentum": True}
PLAIN = methods.create("promptfl", {})


def final_state(federation):
    state = federation.initial_state()
    for result in federation.run(state):
        state = result.state
    return state


def training(server, *phases, **changes):
    """A server with `a` shared and `b` personal, of which the phases train some."""
    federation = server("a", **changes)
    federation.job.method.phases = tuple(Phase(frozenset(keys)) for keys in phases)
    return federation


def test_momentum_of_a_shared_weight_stays_with_the_client(server):
    """Means 2, 5, -4 and 2, 1, 3 images. Round 1: v = -2, -5, 4, and a = (2 + 2.5 - 6) / 6 = -0.25. Round 2:
    v = v / 2 + a - mean = -3.25, -7.75, 5.75, and a falls by (2 * 3.25 + 7.75 - 3 * 5.75) / 12 * -1 = 0.25."""
    state = final_state(training(server, "a", **KEPT))
    assert state.shared["a"].item() == -0.5
    assert state.kept["momentum.0.a"].flatten().tolist() == [-3.25, -7.75, 5.75]
    fresh = final_state(training(server, "a", momentum=0.5))
    assert fresh.kept == {}
    assert fresh.shared["a"].item() == pytest.approx(-0.375)  # -0.25 - (-4.5 - 5.25 + 11.25) / 12


def test_momentum_of_a_personal_weight(server):
    """Round 1: v = -5, b = 2.5. Round 2: v = -2.5 - 2.5, b = 5; from 0 again it would be 3.75."""
    state = final_state(training(server, "b", **KEPT))
    assert state.personal["b"].flatten().tolist() == [2.0, 5.0, -4.0]
    assert final_state(training(server, "b", momentum=0.5)).personal["b"].flatten().tolist() == [1.5, 3.75, -3.0]


def test_each_phase_has_its_own(server):
    """b twice in a round. Round 1: v = -5, b = 2.5; v' = -2.5, b = 3.75. Round 2: v = -2.5 - 1.25 = -3.75, b = 5.625;
    v' = -1.25 + 0.625 = -0.625, b = 5.9375."""
    state = final_state(training(server, "b", "b", **KEPT))
    assert [state.kept[f"momentum.{phase}.b"][1].item() for phase in (0, 1)] == [-3.75, -0.625]
    assert state.personal["b"][1].item() == 5.9375


def test_clients_that_do_not_take_part_keep_theirs(server):
    federation = training(server, "b", participation=0.4, rounds=1, **KEPT)
    (chosen,) = sample_clients(federation.job.seed, 1, 3, federation.job.federation)
    kept = final_state(federation).kept["momentum.0.b"].flatten()
    assert kept.tolist() == [-mean if client == chosen else 0 for client, mean in enumerate([2, 5, -4])]


@pytest.mark.parametrize("keeps", [True, False])
def test_the_momentum_of_a_lost_client_goes_with_its_personal_parameters(server, keeps):
    federation = training(server, "b", dropout=0.5, dropout_keeps_personal=keeps, rounds=1, **KEPT)
    settings = federation.job.federation
    federation.job.__dict__["seed"] = next(s for s in range(100) if lost(settings, s, 1, np.arange(3)).sum() == 1)
    gone = lost(settings, federation.job.seed, 1, np.arange(3))
    state = final_state(federation)
    assert (state.kept["momentum.0.b"].flatten() == 0).tolist() == (gone & (not keeps)).tolist()
    assert (state.personal["b"].flatten() == 0).tolist() == (gone & (not keeps)).tolist()


def test_blocks_and_chunks_change_nothing(server):
    states = [
        final_state(training(server, "a", "b", rounds=4, participation=0.7, block_size=size, chunk_size=chunk, **KEPT))
        for size, chunk in ((3, None), (1, None), (2, 1))
    ]
    for other in states[1:]:
        for tree in ("shared", "personal", "kept"):
            first = getattr(states[0], tree)
            assert all(torch.equal(value, getattr(other, tree)[key]) for key, value in first.items())


def test_fine_tuning_starts_at_0(server):
    """An evaluation does not see the momentum, and does not change it."""
    plain, tuned = (final_state(training(server, "b", finetune_epochs=own, **KEPT)) for own in (0, 2))
    assert torch.equal(plain.kept["momentum.0.b"], tuned.kept["momentum.0.b"])


def test_it_needs_momentum_and_a_rule_that_takes_any_start():
    with pytest.raises(ValueError, match="keep_momentum has no effect; it needs momentum above 0"):
        FederationSettings(momentum=0, keep_momentum=True)
    rule = {"name": "scaffold", **server_rules.create("scaffold", {}).settings.model_dump()}
    with pytest.raises(ConfigError) as refused:
        rule_needs.rule_of(PLAIN, FederationSettings.model_validate({"server": rule, **KEPT}))
    assert str(refused.value) == (
        "federation.keep_momentum=true: federation.server.name=scaffold assumes that momentum starts at 0 in each "
        "local update; give federation.keep_momentum=false, or another rule"
    )


def test_more_momentum_than_memory_is_refused(monkeypatch):
    """16.8 MB of 1,000 clients are 15.7 GiB."""
    monkeypatch.setattr(memory, "total", lambda: 8 * 2**30)
    tree, kept = {"ctx": torch.empty(4_206_080, device="meta")}, FederationSettings.model_validate(KEPT)
    rule_needs.check_momentum(PLAIN, FederationSettings(), 1000, tree)
    rule_needs.check_momentum(PLAIN, kept, 100, tree)
    assert rule_needs.momentum_bytes(PLAIN, kept, tree) == 4 * 4_206_080
    with pytest.raises(ConfigError) as refused:
        rule_needs.check_momentum(PLAIN, kept, 1000, tree)
    assert str(refused.value) == (
        "federation.keep_momentum=true: the momentum of 1,000 clients takes about 15.7 GiB of memory on the server, "
        "and this machine has 8.0 GiB; give fewer clients, or federation.keep_momentum=false"
    )
