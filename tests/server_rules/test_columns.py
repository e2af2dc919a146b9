"""Passes over columns give what the whole stack gives, whatever the size of a chunk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp import server_rules
from fedpgp.server_rules import columns, krum
from fedpgp.server_rules.base import Received

CLIENTS = 9


@pytest.fixture
def stack():
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(CLIENTS, 4, 5, generator=generator),
        "vector": torch.randn(CLIENTS, 7, generator=generator),
        "number": torch.randn(CLIENTS, generator=generator),
    }


def aggregate(name, stack, **settings):
    rule = server_rules.create(name, settings)
    shared = {key: torch.zeros(value.shape[1:]) for key, value in stack.items()}
    weights = torch.arange(1.0, CLIENTS + 1, dtype=torch.float64)
    received = Received(np.arange(CLIENTS), weights, {}, stack, CLIENTS, torch.Generator())
    return rule.aggregate({}, shared, received)[1]


STACKED = {"median": {}, "trimmed_mean": {"trim": 0.2}, "krum": {}, "multi_krum": {"m": 3}, "geometric_median": {}}


@pytest.mark.parametrize("name", STACKED)
def test_the_size_of_a_chunk_changes_no_bit(monkeypatch, stack, name):
    whole = aggregate(name, stack, **STACKED[name])
    assert {key: value.shape for key, value in whole.items()} == {key: one.shape[1:] for key, one in stack.items()}
    monkeypatch.setattr(columns, "CHUNK_BYTES", 200)  # two columns
    cut = aggregate(name, stack, **STACKED[name])
    for key, value in whole.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(cut[key], value, atol=0 if name != "geometric_median" else 1e-7, rtol=0)


def test_median_and_trimmed_mean_are_those_of_numpy(stack):
    for key, value in aggregate("median", stack).items():
        np.testing.assert_array_equal(value, np.median(stack[key], axis=0))
    for key, value in aggregate("trimmed_mean", stack, trim=0.23).items():
        ordered = np.sort(stack[key].double().numpy(), axis=0)
        np.testing.assert_allclose(value, ordered[2:-2].mean(0), rtol=1e-6)


def test_a_share_that_a_machine_rounds_down_cuts_what_was_asked_for():
    """0.29 of 100 is 28.99..."""
    values = torch.arange(100.0).square().double().unsqueeze(1)
    rule = server_rules.create("trimmed_mean", {"trim": 0.29})
    assert rule._of_columns(values).item() == values[29:71].mean().item()


@pytest.mark.parametrize("f", [0, 1, 3])
def test_scores_of_krum_are_sums_of_the_nearest_squares(stack, f):
    flat = torch.cat([value.reshape(CLIENTS, -1) for value in stack.values()], 1).double().numpy()
    squares = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    expected = [np.sort(np.delete(squares[i], i))[: CLIENTS - f - 2].sum() for i in range(CLIENTS)]
    shared = {key: torch.full(value.shape[1:], 0.5) for key, value in stack.items()}
    np.testing.assert_allclose(krum.scores(stack, shared, f), expected, rtol=1e-12)


def test_geometric_median_is_where_the_sum_of_distances_is_least(stack):
    found = aggregate("geometric_median", stack, iterations=500)
    weights = torch.arange(1.0, CLIENTS + 1, dtype=torch.float64)

    def cost(shift):
        squares = sum((value.double() - found[key].double() - shift).reshape(CLIENTS, -1).square().sum(1)
                      for key, value in stack.items())  # fmt: skip
        return (weights * squares.sqrt()).sum().item()

    assert cost(0.0) < min(cost(0.01), cost(-0.01))
