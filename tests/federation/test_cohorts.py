"""Blocks of clients: in the order of the clients, and of clients that train for about as long."""

from itertools import pairwise

import numpy as np
import pytest

from fedpgp.federation.cohorts import blocks, training_blocks
from fedpgp.federation.state import Stack


def test_blocks_are_cut_from_the_sorted_clients():
    assert [part.tolist() for part in blocks(np.array([1, 3, 4, 7, 9]), 2)] == [[1, 3], [4, 7], [9]]


@pytest.mark.parametrize(
    ("clients", "size", "sizes"),
    [(100, 10, [10] * 8 + [5] * 4), (41, 10, [10] * 3 + [5, 5, 1]), (40, 10, [10] * 4), (6, 1, [1] * 6), (0, 10, [])],
)
def test_the_last_two_of_many_blocks_are_cut_in_half(clients, size, sizes):
    cut = blocks(np.arange(clients), size)
    assert [len(part) for part in cut] == sizes
    assert [client for part in cut for client in part] == list(range(clients))


def test_clients_with_as_many_steps_train_together():
    """Ten clients in five blocks; half again the mean work, 6.6 of 22 steps, cuts the first one."""
    clients = np.array([0, 2, 4, 6, 8, 10, 12, 14, 16, 18])
    steps = np.array([1, 5, 1, 2, 1, 5, 1, 2, 2, 2])
    found = [part.tolist() for part in training_blocks(clients, 2, steps)]
    assert found == [[2], [10], [6, 14], [16, 18], [0], [4], [8], [12]]


def test_blocks_of_equal_clients_and_few_blocks_stay_in_order():
    clients = np.arange(3, 103)
    for size, count in ((10, 100), (10, 7), (30, 100)):
        expected = [part.tolist() for part in blocks(clients[:count], size)]
        assert [part.tolist() for part in training_blocks(clients[:count], size, np.full(count, 3))] == expected
    few = training_blocks(clients[:40], 10, np.arange(40))
    assert [part.tolist() for part in few] == [part.tolist() for part in blocks(clients[:40], 10)]


@pytest.mark.parametrize("seed", range(5))
def test_every_client_trains_in_one_block(seed):
    generator = np.random.default_rng(seed)
    clients = np.sort(generator.choice(1000, 97, replace=False))
    steps = np.ceil(generator.pareto(1, 97) * 3).astype(int)
    found = training_blocks(clients, 10, steps)
    assert np.sort(np.concatenate(found)).tolist() == clients.tolist()
    assert all(len(part) <= 10 and (np.diff(part) > 0).all() for part in found)
    by_client = dict(zip(clients.tolist(), steps.tolist(), strict=True))
    spread = [[by_client[client] for client in part] for part in found]
    assert all(min(earlier) >= max(later) for earlier, later in pairwise(spread))


def test_a_stack_is_in_the_order_of_the_clients():
    """Client 5 sends nothing; the blocks arrive in another order than that of the clients."""
    stack = Stack(np.array([2, 3, 5, 8]))
    stack.add(np.array([3, 8]), {"a": np.array([[3.0], [8.0]])})
    stack.add(np.array([2]), {"a": np.array([[2.0]])})
    assert stack.filled()["a"].tolist() == [[2.0], [3.0], [8.0]]
    nothing = Stack(np.array([1, 2]))
    nothing.add(np.array([1]), {})
    assert nothing.filled() == {}
