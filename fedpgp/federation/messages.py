"""Messages between the server and the workers: calls, results, and references to feature caches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np
from torch import Tensor

from fedpgp.clip.feature_cache import FeatureKey
from fedpgp.federation.pooled_counts import PooledCounts
from fedpgp.federation.usage import Usage

Arrays = dict[str, np.ndarray]  # a parameter tree in a message


def to_arrays(tree: Mapping[str, Tensor]) -> Arrays:
    """A parameter tree as a message; tensors on the CPU are not copied."""
    return {key: value.detach().cpu().numpy() for key, value in tree.items()}


@dataclass(frozen=True)
class Features:
    """The cache of frozen image features, and the key that it must have."""

    path: Path
    key: FeatureKey


@dataclass(frozen=True)
class Call:
    """Train these clients from the shared parameters and their personal ones, or evaluate their models."""

    round: int
    clients: np.ndarray  # (K,)
    personal: Arrays  # (K, ...)
    kept: Arrays = field(default_factory=dict)  # (K, ...) what the server rule lets each client keep, or its momentum
    sent: Arrays = field(default_factory=dict)  # (K, ...) what the server sends to each of them alone
    clip_norm: float = inf  # longest update under differential privacy
    confusion: bool = False  # whether an evaluation counts confusion matrices


@dataclass(frozen=True)
class Counts:
    """Correct answers and images of each client by domain."""

    split: str
    metric: str
    clients: np.ndarray  # (K,)
    correct: np.ndarray  # (K, domains)
    total: np.ndarray  # (K, domains)
    pooled: PooledCounts  # over all clients
    confusion: np.ndarray | None = None  # (C, C) label x answer, over all clients; None: not counted


@dataclass(frozen=True)
class TrainResult:
    """The result of training a block. What clients send is summed in the worker, unless the rule needs every update."""

    clients: np.ndarray  # (K,)
    accepted: np.ndarray  # (K,) bool: the client's update counts
    weights: np.ndarray  # (K,) weights in the sum
    total: Arrays  # float64, weighted sum of what the accepted clients send; empty if the rule stacks
    stack: Arrays  # (accepted, ...) what each accepted client sends; empty if the rule sums
    personal: Arrays  # (K, ...)
    kept: Arrays  # (K, ...)
    num_examples: np.ndarray  # (K,)
    bytes_up: int  # sent by all clients of the block
    loss: np.ndarray  # (K,)
    events: tuple[str | None, ...]  # (K,) what went wrong and what was done
    before_aggregation: list[Counts] = field(default_factory=list)
    parts: Arrays = field(default_factory=dict)  # (K,) of each named part of the loss
    votes: float = 0.0  # sum of the votes on the clip norm
    usage: Usage = field(default_factory=Usage)
