"""Seeded ranks within groups."""

from __future__ import annotations

import numpy as np

from fedpgp.core.seeding import numpy_generator, shuffled_order, shuffled_ranks

KEYS = np.array([3, 0, 3, 3, 0, 7])


def test_ranks_count_up_within_each_key() -> None:
    ranks = shuffled_ranks(KEYS, numpy_generator(1, "ranks"))
    assert sorted(ranks[KEYS == 3]) == [0, 1, 2]
    assert sorted(ranks[KEYS == 0]) == [0, 1]
    assert ranks[KEYS == 7] == [0]


def test_every_item_of_a_key_comes_first_equally_often() -> None:
    first = [int(np.argmin(shuffled_ranks(np.zeros(3), numpy_generator(seed, "ranks")))) for seed in range(600)]
    assert np.all(np.abs(np.bincount(first) - 200) < 60)  # five standard deviations


def test_order_is_sorted_by_key() -> None:
    order = shuffled_order(KEYS, numpy_generator(1, "order"))
    assert sorted(order) == list(range(6))
    assert list(KEYS[order]) == [0, 0, 3, 3, 3, 7]


def test_no_items() -> None:
    assert len(shuffled_ranks(np.empty(0, np.int64), numpy_generator(1, "ranks"))) == 0
