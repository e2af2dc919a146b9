"""Randomness as a function: every draw derives from (seed, purpose, round, client)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for one purpose, for example `derive_seed(seed, "batches", round, client)`.

    Distinct label sequences give independent seeds; the order of calls never matters.
    """
    text = "\x1f".join(f"{type(label).__name__}:{label}" for label in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *labels: str | int) -> np.random.Generator:
    """A numpy generator of its own for one purpose."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *labels)))


def torch_generator(seed: int, *labels: str | int) -> torch.Generator:
    """A torch (CPU) generator of its own for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *labels))
