"""Weighted averaging of what clients share (FedAvg, McMahan et al., 2017): sums in the actor, then the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch

from fedpgp.core.tree import ParamTree


def weighted_sum(shared: ParamTree, weights: torch.Tensor) -> ParamTree:
    """Sum over the clients of a block, in client order, in float64.

    Args:
        shared: stacked shared parameters (K, ...).
        weights: numbers of training images (K,).
    """
    return {key: torch.tensordot(weights.double(), value.double(), dims=1) for key, value in shared.items()}


def add(total: ParamTree, part: Mapping[str, np.ndarray]) -> None:
    """Add a block's weighted sum to the `total` of those before it, in place: one tree, however many blocks."""
    for key, value in part.items():
        if key in total:
            total[key].numpy()[...] += value
        else:
            total[key] = torch.tensor(value)


def average(sums: Sequence[ParamTree], total: float, like: ParamTree) -> ParamTree:
    """Blocks' weighted sums to the weighted mean, in the dtype of `like`.

    Only those who trained count: `total` is the sum of their weights.
    """
    return {key: (reduce(torch.add, [part[key] for part in sums]) / total).to(like[key].dtype) for key in like}
