"""Sampling and blocks."""

from __future__ import annotations

import numpy as np

from fedpgp.federation.client_sampling import blocks, cohort


def test_a_cohort_is_a_function_of_seed_and_round():
    draws = {round: cohort(1, round, 20, 0.25, False).tolist() for round in range(1, 9)}
    assert draws == {round: cohort(1, round, 20, 0.25, False).tolist() for round in reversed(range(1, 9))}
    assert all(len(set(who)) == 5 and who == sorted(who) for who in draws.values())
    assert len({tuple(who) for who in draws.values()}) > 1
    assert draws != {round: cohort(2, round, 20, 0.25, False).tolist() for round in range(1, 9)}


def test_everyone_and_at_least_one():
    assert cohort(1, 3, 7, 1.0, False).tolist() == list(range(7))
    assert len(cohort(1, 3, 7, 0.01, False)) == 1
    assert len(cohort(1, 1, 7, 0.5, True)) == 7
    assert len(cohort(1, 2, 7, 0.5, True)) == 3  # floor, as in the authors' code


def test_blocks_are_cut_from_the_sorted_cohort():
    assert [part.tolist() for part in blocks(np.array([1, 3, 4, 7, 9]), 2)] == [[1, 3], [4, 7], [9]]
