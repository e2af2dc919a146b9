"""What goes between the server and the actors: calls, results, and where frozen features lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedpgp.clip.feature_cache import FeatureKey

Arrays = dict[str, np.ndarray]
"""A parameter tree on the way to or from an actor."""


@dataclass(frozen=True)
class Features:
    """Where frozen image features lie, and what they must be."""

    path: Path
    key: FeatureKey


@dataclass(frozen=True)
class TrainCall:
    """Train these clients, starting from the shared parameters and each one's personal ones."""

    round: int
    clients: np.ndarray  # (K,)
    personal: Arrays  # (K, ...)


@dataclass(frozen=True)
class EvaluateCall:
    """Test these clients' models."""

    round: int
    clients: np.ndarray  # (K,)
    personal: Arrays  # (K, ...)
    confusion: bool = False  # whether to count what was taken for what, too


@dataclass(frozen=True)
class Counts:
    """Right answers and images of each client, per domain."""

    split: str
    metric: str
    clients: np.ndarray  # (K,)
    correct: np.ndarray  # (K, domains)
    total: np.ndarray  # (K, domains)
    confusion: np.ndarray | None = None  # (C, C) label x answer, all clients together; None: not counted


@dataclass(frozen=True)
class TrainResult:
    """What comes back of a block: a client's shared update never travels alone."""

    clients: np.ndarray  # (K,)
    shared_sum: Arrays  # float64, weighted by num_examples
    personal: Arrays  # (K, ...)
    num_examples: np.ndarray  # (K,)
    weight: float  # num_examples of those who are in the sum
    loss: np.ndarray  # (K,)
    events: tuple[str | None, ...]  # (K,) what went wrong and what was done
    before_aggregation: list[Counts] = field(default_factory=list)
    parts: Arrays = field(default_factory=dict)  # (K,) of each named part of the loss
