"""Lost and slow clients: whole rounds with hand-worked numbers."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from fedpgp.config import FederationSettings
from fedpgp.federation.absence import epochs, joined, lost
from fedpgp.methods.base import Phase
from fedpgp.server_rules.base import RuleSettings
from fedpgp.server_rules.scaffold import Scaffold

CLIENTS = np.arange(2000)


def test_each_client_is_lost_with_the_probability():
    federation = FederationSettings(dropout=0.3)
    found = lost(federation, 1, 5, CLIENTS)
    assert found.mean() == pytest.approx(0.3, abs=0.04)  # 4 standard deviations
    assert np.array_equal(lost(federation, 1, 5, CLIENTS[700:900]), found[700:900])
    assert not np.array_equal(lost(federation, 1, 6, CLIENTS), found)
    assert not np.array_equal(lost(federation, 2, 5, CLIENTS), found)
    assert not lost(FederationSettings(), 1, 5, CLIENTS).any()


def test_each_client_is_slow_with_the_probability_and_all_counts_of_epochs_occur():
    federation = FederationSettings(straggler=0.6, local_epochs=4)
    found = epochs(federation, 1, 5, CLIENTS)
    counts = np.bincount(found, minlength=5) / len(CLIENTS)
    assert counts[0] == 0
    assert counts[1:4] == pytest.approx([0.2] * 3, abs=0.04)
    assert counts[4] == pytest.approx(0.4, abs=0.045)
    assert np.array_equal(epochs(federation, 1, 5, CLIENTS[::-1]), found[::-1])
    assert set(epochs(FederationSettings(straggler=1.0, local_epochs=2), 1, 5, CLIENTS)) == {1}
    assert set(epochs(FederationSettings(local_epochs=4), 1, 5, CLIENTS)) == {4}


def test_events_are_joined():
    assert joined([None, "a", None], [None, None, None], [None, "b", "b"]) == (None, "a; b", "b")


def rounds(federation):
    return list(federation.run(federation.initial_state()))


def events(result):
    return result.clients.filter(pc.field("metric") == "train")["event"].to_pylist()


def some_lost(make, **changes):
    """A federation with one seed in whose first round some clients are lost, but not all; and which those are."""
    federation = make("a", dropout=0.5, rounds=1, **changes)
    for seed in range(100):
        object.__setattr__(federation.job, "seed", seed)
        gone = lost(federation.job.federation, seed, 1, np.arange(3))
        if gone.sum() == 1:
            return federation, gone
    raise AssertionError


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_an_update_that_is_lost_does_not_count(server, keeps, block_size):
    """Updates 1, 2.5, -2 with weights 2, 1, 3, but for that of the lost client, which sends no byte."""
    federation, gone = some_lost(server, dropout_keeps_personal=keeps, block_size=block_size)
    (result,) = rounds(federation)
    weights = np.array([2, 1, 3]) * ~gone
    learned = np.array([1.0, 2.5, -2.0])
    assert result.state.shared["a"].item() == pytest.approx((weights @ learned) / weights.sum())
    kept = np.where(gone & (not keeps), 0.0, learned)
    assert result.state.personal["b"].flatten().tolist() == kept.tolist()
    assert events(result) == ["lost" if one else None for one in gone]
    assert result.row.participants == 3
    assert result.row.bytes_up == 2 * 4
    assert result.row.bytes_down == 3 * 4


def test_a_client_that_is_excluded_and_lost_keeps_nothing(server):
    federation, gone = some_lost(server, policy="exclude", max_update_norm=1e-9)
    (result,) = rounds(federation)
    assert result.state.personal["b"].flatten().tolist() == [0, 0, 0]
    (event,) = np.array(events(result))[gone]
    assert event.startswith("excluded: ")
    assert event.endswith("; lost")


def test_if_everyone_is_lost_the_shared_parameters_are_unchanged(server, caplog):
    federation = server("a", dropout=0.999999, rounds=1)
    with caplog.at_level(logging.WARNING):
        (result,) = rounds(federation)
    assert "round 1: every client was lost or excluded; the shared parameters are unchanged" in caplog.text
    assert result.state.shared["a"].item() == 0
    assert result.state.round == 1
    assert result.row.bytes_up == 0


def test_a_straggler_does_the_first_of_its_epochs(server):
    """a + b goes to 2, 5, -4: a step of 0.25 goes half of the way, two go three quarters."""
    federation = server("a", local_epochs=2, straggler=0.5, rounds=1, lr=0.25)
    federation.job.__dict__["seed"] = next(
        seed for seed in range(100) if sorted(epochs(federation.job.federation, seed, 1, np.arange(3))) == [1, 1, 2]
    )
    done = epochs(federation.job.federation, federation.job.seed, 1, np.arange(3))
    (result,) = rounds(federation)
    way = np.where(done == 1, 0.5, 0.75)
    assert result.state.personal["b"].flatten().tolist() == (way * [1.0, 2.5, -2.0]).tolist()
    assert events(result) == ["straggler: 1 of 2 epochs" if own == 1 else None for own in done]
    assert result.row.bytes_up == 3 * 4


def test_a_straggler_does_its_share_of_a_phase_with_epochs_of_its_own(server):
    """1 of 2 local epochs is half of the 3 epochs of the first phase, rounded up: 2; steps of 0.5 go 3/4 of the way."""
    federation = server("a", local_epochs=2, straggler=1.0, rounds=1)
    federation.job.method.phases = (Phase(frozenset({"b"}), epochs=3), Phase(frozenset({"a"}), lr={"a": 1e-30}))
    (result,) = rounds(federation)
    assert result.state.personal["b"].flatten().tolist() == [1.5, 3.75, -3.0]


def test_scaffold_divides_by_the_steps_that_a_straggler_did(server):
    """With a constant gradient g the control variate of every client is g, whatever it did: (x - y) / (steps lr)."""
    federation = server("a", local_epochs=4, straggler=0.6, rounds=1)
    object.__setattr__(federation.job, "rule", Scaffold(RuleSettings()))
    federation.job.method.loss = lambda params, received, frozen, batch: ((3 * params["a"] + 0 * params["b"])[:, 0], {})
    (result,) = rounds(federation)
    assert len(set(epochs(federation.job.federation, 1, 1, np.arange(3)))) > 1
    assert result.state.kept["control.a"].flatten().tolist() == pytest.approx([3.0] * 3)


def test_scaffold_keeps_the_control_variates_of_lost_clients(server):
    """So that the server's is still their mean: c = sum of c_i / 3."""
    federation, gone = some_lost(server)
    object.__setattr__(federation.job, "rule", Scaffold(RuleSettings()))
    (result,) = rounds(federation)
    own = result.state.kept["control.a"].flatten()
    assert own[torch.from_numpy(gone)].tolist() == [0]
    assert result.state.server["control.a"].item() == pytest.approx(own.mean().item())


def test_blocks_and_chunks_change_nothing(server):
    runs = []
    for size, chunk in ((3, None), (1, None), (2, 1)):
        federation = server(
            "a", rounds=4, dropout=0.4, straggler=0.5, local_epochs=3, block_size=size, chunk_size=chunk
        )
        runs.append([(result.state.shared["a"].item(), events(result)) for result in rounds(federation)])
    assert runs[0] == runs[1] == runs[2]
