"""Reproducible randomness: every generator is a function of (seed, purpose, round, client)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *labels: str | int) -> int:
    """Derive a 63-bit seed for one purpose, for example `derive_seed(seed, "batches", round, client)`.

    Distinct label sequences give independent seeds; the order of calls does not matter.
    """
    text = "\x1f".join(f"{type(label).__name__}:{label}" for label in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """Create the numpy generator of one purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *labels)))


def torch_generator(seed: int, *labels: str | int) -> torch.Generator:
    """Create the torch (CPU) generator of one purpose."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *labels))


def share_of(items: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Choose a share of distinct items, sorted; see `count_of_share` for their number."""
    return np.sort(generator.choice(items, count_of_share(len(items), share), replace=False))


def count_of_share(number: int, share: float) -> int:
    """Round a share of a number to the nearest whole number, halves to even: at least 1 and never all, but 0 for 0."""
    return min(max(1, round(share * number)), number - 1) if share else 0


def shuffled_order(keys: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sort positions by key, in a random order within each key. Shape [n]."""
    return np.lexsort((generator.permutation(len(keys)), keys))


def shuffled_ranks(keys: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rank each item (0, 1, ...) in a random order of the items with its key. Shape [n].

    `shuffled_ranks(...) < k` chooses k items per key; a smaller k chooses a subset.
    """
    order = shuffled_order(keys, generator)
    grouped = keys[order]
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(grouped, grouped)
    return ranks
