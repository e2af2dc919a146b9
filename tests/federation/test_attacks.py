"""Attacks: who attacks, what is sent, and whole rounds with hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from one_weight import Sum

from fedpgp.config import AttackSettings
from fedpgp.federation.attacks import attackers, false_update, train_labels
from fedpgp.federation.server import Server

UPDATE = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0], [0.0]])}  # as long as 5, 4 values


def settings(kind, **changes):
    return AttackSettings(**{"kind": kind, "fraction": 0.2, **changes})


def generator(seed=1):
    return np.random.Generator(np.random.PCG64(seed))


def test_a_flipped_update_points_the_other_way():
    sent = false_update(settings("sign_flip", scale=2), UPDATE, generator())
    assert sent["a"].tolist() == [-6, 0]
    assert sent["b"].tolist() == [[-8], [0]]


def test_one_value_everywhere_is_as_long_as_asked_for():
    """2 * 5 / sqrt(4) = 5 in each of 4 places, over both keys."""
    sent = false_update(settings("same_value", scale=2), UPDATE, generator())
    assert sent["a"].tolist() == [5, 5]
    assert sent["b"].tolist() == [[5], [5]]


def test_noise_has_the_length_of_the_update_and_nothing_of_its_direction():
    update = {"a": torch.ones(40_000), "b": torch.zeros(40_000)}
    sent = false_update(settings("gaussian", scale=3), update, generator())
    squared = sum(value.square().sum().item() for value in sent.values())
    assert squared == pytest.approx(9 * 40_000, rel=0.02)  # its standard deviation is sqrt(2 / 80,000) = 0.5%
    assert sent["a"].std().item() == pytest.approx(sent["b"].std().item(), rel=0.03)
    assert abs(sent["a"].mean().item()) < 0.05
    assert sent["a"].dtype == torch.float32
    again, other = (false_update(settings("gaussian", scale=3), update, generator(seed)) for seed in (1, 2))
    assert torch.equal(again["a"], sent["a"])
    assert not torch.equal(other["a"], sent["a"])


@pytest.mark.parametrize("kind", ["sign_flip", "gaussian", "same_value", "label_flip"])
def test_who_has_learned_nothing_sends_nothing(kind):
    nothing = {key: torch.zeros_like(value) for key, value in UPDATE.items()}
    assert all(not value.any() for value in false_update(settings(kind), nothing, generator()).values())


def test_false_labels_are_counted_from_the_other_end():
    labels = np.array([0, 1, 4])
    flipped = train_labels(settings("label_flip"), labels, 5)
    assert flipped.tolist() == [4, 3, 0]
    assert train_labels(settings("label_flip"), flipped, 5).tolist() == labels.tolist()
    assert train_labels(settings("sign_flip"), labels, 5).tolist() == labels.tolist()
    assert false_update(settings("label_flip"), UPDATE, generator()) == UPDATE


@pytest.mark.parametrize(
    ("clients", "fraction", "count"), [(10, 0.2, 2), (10, 0.01, 1), (10, 0.25, 2), (10, 0.35, 4), (3, 0.99, 2)]
)
def test_a_share_of_the_clients_attacks_the_same_in_every_run_of_a_seed(clients, fraction, count):
    everyone = np.arange(100, 100 + clients)
    found = attackers(settings("gaussian", fraction=fraction), everyone, seed=3)
    assert len(set(found)) == len(found) == count
    assert set(found) <= set(everyone)
    assert found.tolist() == sorted(attackers(settings("sign_flip", fraction=fraction), everyone, seed=3))
    assert len({tuple(attackers(settings("gaussian", fraction=fraction), everyone, seed)) for seed in range(20)}) > 1
    assert not len(attackers(None, everyone, seed=3))


def train_rows(result):
    return result.clients.filter(pc.field("metric") == "train")


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["sign_flip", "same_value"])
def test_a_round_with_an_attacker(server, kind, block_size):
    """Updates 1, 2.5, -2 with weights 2, 1, 3; that of one client, k, is -2 or 2 |d| instead of d.

    It keeps its b as trained; accuracies are those of the others.
    """
    federation = server("a", attack=settings(kind, scale=2), block_size=block_size, evaluate_before_aggregation=True)
    (k,) = federation.job.attackers
    first, _ = federation.run(federation.initial_state())
    sent = [1.0, 2.5, -2.0]
    sent[k] = -2 * sent[k] if kind == "sign_flip" else 2 * abs(sent[k])
    assert first.state.shared["a"].item() == pytest.approx((2 * sent[0] + sent[1] + 3 * sent[2]) / 6)
    assert train_rows(first)["event"].to_pylist() == [f"attack: {kind}" if one == k else None for one in range(3)]
    for metric in ("local", "local_before_aggregation"):
        tested = first.clients.filter((pc.field("split") == "test") & (pc.field("metric") == metric))
        assert tested["client"].to_pylist() == [one for one in range(3) if one != k]
    assert first.row.participants == 3
    assert first.row.bytes_up == 3 * 4


def test_personal_parameters_of_an_attacker_stay_as_trained(server):
    federation = server("a", rounds=1, attack=settings("sign_flip"))
    (result,) = federation.run(federation.initial_state())
    assert result.state.personal["b"].flatten().tolist() == [1.0, 2.5, -2.0]


def test_before_its_first_round_an_attacker_is_honest(server):
    honest, attacked = (
        list(federation.run(federation.initial_state()))
        for federation in (server("a"), server("a", attack=settings("sign_flip", start_round=2)))
    )
    assert torch.equal(honest[0].state.shared["a"], attacked[0].state.shared["a"])
    assert not torch.equal(honest[1].state.shared["a"], attacked[1].state.shared["a"])
    assert train_rows(attacked[0])["event"].to_pylist() == [None] * 3


def test_a_limit_on_updates_meets_the_false_ones(server):
    """Scale 100 makes any update longer than 10, so it is excluded, and its client keeps b = 0."""
    attack = settings("sign_flip", scale=100)
    federation = server("a", rounds=1, attack=attack, policy="exclude", max_update_norm=10.0)
    (k,) = federation.job.attackers
    (result,) = federation.run(federation.initial_state())
    event = train_rows(result)["event"].to_pylist()[k]
    assert event.startswith("attack: sign_flip; excluded: update norm ")
    assert result.state.personal["b"].flatten().tolist()[k] == 0


class Labels(Sum):
    """loss = mean (a + b - label)^2 / 2."""

    def loss(self, params, received, frozen, batch):
        cut = params["a"] + params["b"]
        squared = (cut - batch.labels).square() / 2
        return (squared * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1), {}


@pytest.mark.parametrize("block_size", [1, 3])
def test_false_labels_in_training_alone(server, block_size):
    """Labels 1, 1, 0 by client, so a = 0.5, 0.5, 0 after a step of 0.5; the attacker has learned the other label."""
    made = server("a", rounds=1, attack=settings("label_flip"), block_size=block_size)
    job = made.job
    object.__setattr__(job, "method", Labels("a"))
    (k,) = job.attackers
    (result,) = Server(job, made.backend).run(made.initial_state())
    learned = [0.5, 0.5, 0.0]
    learned[k] = 0.5 - learned[k]
    assert result.state.personal["b"].flatten().tolist() == learned
    assert result.state.shared["a"].item() == pytest.approx((2 * learned[0] + learned[1] + 3 * learned[2]) / 6)
    assert train_rows(result)["event"].to_pylist()[k] == "attack: label_flip"


def test_noise_does_not_depend_on_blocks_and_chunks(server):
    runs = []
    for size, chunk in ((3, None), (1, None), (2, None), (3, 1)):
        federation = server("a", attack=settings("gaussian", fraction=0.7), block_size=size, chunk_size=chunk, rounds=2)
        runs.append([result.state.shared["a"].item() for result in federation.run(federation.initial_state())])
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert runs[0][0] != runs[0][1]
