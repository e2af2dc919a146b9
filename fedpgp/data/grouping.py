"""Seeded order within groups of equal keys, without a loop over the items."""

from __future__ import annotations

import numpy as np


def shuffled_order(keys: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Positions sorted by key, in a random order within each key. Shape [n]."""
    return np.lexsort((generator.permutation(len(keys)), keys))


def shuffled_ranks(keys: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The place 0, 1, ... of each item in a random order of the items with its key. Shape [n].

    `shuffled_ranks(...) < k` chooses k items per key; the choice for a smaller k is part of that for a larger one.
    """
    order = shuffled_order(keys, generator)
    grouped = keys[order]
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(grouped, grouped)
    return ranks
