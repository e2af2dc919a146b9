"""Clients leave the batch after their last step: what a block costs, and that each trains as it would alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp.config import FederationSettings
from fedpgp.federation.client import LocalData, Optimizer, expected_steps, local_update, schedule
from fedpgp.methods.base import Phase

COUNTS = (4, 7, 3, 5)  # images of each client
LENGTHS = ((1, 3, 2, 3), (2, 1, 4, 1))  # steps of each client by phase: another one is the longest in each


class Everything:
    """A loss of everything that a client has: weights, what it was sent, its classes, its draws. It counts images."""

    name = "everything"
    phases = (Phase(frozenset({"a"})), Phase(frozenset({"b"}), lr={"b": 0.25}))

    def __init__(self):
        self.sizes = []

    def loss(self, params, received, frozen, batch):
        self.sizes.append(len(batch.labels))
        params["seen"] += batch.mask.sum(1)
        x = (batch.features[..., 0] * batch.mask).sum(1) / batch.mask.sum(1)
        cut = params["a"] * received["common"] + params["b"] - received["alone"] + batch.draws["noise"]
        square = (cut - x * batch.own.sum(1)).square() / 2
        return square, {"square": square, "cut": cut}


def drawing(clients):
    generators = [torch.Generator().manual_seed(client) for client in clients]

    def drawn(chosen):
        return {"noise": torch.stack([torch.rand((), generator=generators[index]) for index in chosen])}

    return drawn


def trained(clients, method):
    """These clients in one block."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sum(COUNTS), 1, generator=generator).split(COUNTS)
    tree = {key: torch.randn(len(COUNTS), generator=generator) for key in ("a", "b", "alone", "change", "m0", "m1")}
    own = torch.arange(12).view(4, 3) % 5 < 3
    orders = [
        [[np.arange(step % 2, COUNTS[client] - step % 2) for step in range(lengths[client])] for client in clients]
        for lengths in LENGTHS
    ]
    rates = [np.random.default_rng(phase).random((4, len(COUNTS)))[:, list(clients)] for phase in (0, 1)]
    counts = [COUNTS[client] for client in clients]
    mine = {key: value[list(clients)] for key, value in tree.items()}
    features = torch.cat([images[client] for client in clients])
    labels = torch.zeros(len(features), dtype=torch.long)
    data = LocalData(features, labels, np.cumsum(counts) - counts, own[list(clients)])
    params = {"a": mine["a"], "b": mine["b"], "seen": torch.zeros(len(clients), dtype=torch.long)}
    return local_update(
        method, None, params, {"common": torch.tensor(0.5), "alone": mine["alone"]}, data, orders,
        Optimizer(0.1, 0.9, 5e-4), factors=rates, correction={"a": mine["change"]}, draws=drawing(clients),
        kept={"momentum.0.a": mine["m0"], "momentum.1.b": mine["m1"]}, sent={"alone"},
    )  # fmt: skip


def test_a_step_has_the_clients_with_a_batch_left():
    method = Everything()
    trained(range(4), method)
    assert method.sizes == [4, 3, 2, 4, 2, 1, 1]
    assert sum(method.sizes) == sum(map(sum, LENGTHS))


def test_all_that_belongs_to_a_client_stays_with_it():
    """Every operation is one of single numbers, so the bits are those of each client alone."""
    block = trained(range(4), Everything())
    assert block.params["seen"].tolist() == [
        sum(COUNTS[client] - 2 * (step % 2) for lengths in LENGTHS for step in range(lengths[client]))
        for client in range(4)
    ]
    for client in range(4):
        alone = trained([client], Everything())
        for tree in ("params", "parts", "momentum"):
            for key, value in getattr(alone, tree).items():
                assert torch.equal(value[0], getattr(block, tree)[key][client]), (tree, key, client)
        assert torch.equal(alone.loss[0], block.loss[client])
        assert block.params["a"][client] != block.params["b"][client]


def test_draws_of_a_client_do_not_depend_on_who_is_in_the_block():
    """Also where the others are out of batches before it, or it before them."""
    for pair in ((0, 1), (2, 3), (3, 0)):
        both = trained(pair, Everything())
        for place, client in enumerate(pair):
            assert torch.equal(both.params["a"][place], trained([client], Everything()).params["a"][0])


def test_a_client_that_fails_stays_in_the_batch_and_unchanged():
    class Failing(Everything):
        def loss(self, params, received, frozen, batch):
            loss, parts = super().loss(params, received, frozen, batch)
            return torch.where(params["seen"] > 12, torch.inf, loss), parts

    method = Failing()
    block = trained(range(4), method)
    assert method.sizes == [4, 3, 2, 4, 2, 1, 1]
    assert block.finite.tolist() == [True, False, True, False]
    for client in (0, 2):
        assert torch.equal(trained([client], Everything()).params["b"][0], block.params["b"][client])


def test_padding_is_to_the_largest_batch_of_those_that_are_left():
    orders = [[np.arange(3), np.arange(2)], [np.arange(2), np.arange(1)], [np.arange(4)]]
    data = LocalData(torch.arange(9.0)[:, None], torch.zeros(9, dtype=torch.long), np.array([0, 3, 5]))
    first, second = schedule(data, orders)
    assert first.mask.sum(1).tolist() == [3, 2, 4]
    assert second.features[..., 0].tolist() == [[0, 1], [3, 0]]
    assert second.mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [2, 4, 6]),
        ({"drop_last": True}, [2, 2, 4]),
        ({"local_epochs": 1}, [1, 2, 3]),
        ({"local_steps": 5}, [5, 5, 5]),
    ],
)
def test_expected_steps(changes, steps):
    """3, 7 and 9 images in batches of 4, for two epochs."""
    federation = FederationSettings(**{"batch_size": 4, **changes})
    assert expected_steps(np.array([3, 7, 9]), federation).tolist() == steps
