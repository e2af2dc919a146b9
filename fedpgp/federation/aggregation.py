"""Weighted averaging of shared parameters (FedAvg, McMahan et al., 2017): sums in workers, the mean in the server."""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch

from fedpgp.core.tree import ParamTree


def weighted_sum(shared: ParamTree, weights: torch.Tensor) -> ParamTree:
    """Sum the clients of a block, in client order, in float64.

    Args:
        shared: stacked shared parameters (K, ...).
        weights: numbers of training images (K,).
    """
    return {key: torch.tensordot(weights.double(), value.double(), dims=1) for key, value in shared.items()}


def add(total: ParamTree, part: Mapping[str, np.ndarray]) -> None:
    """Add the weighted sum of a block to the `total` of the blocks before it, in place."""
    for key, value in part.items():
        if key in total:
            total[key].numpy()[...] += value
        else:
            total[key] = torch.tensor(value)


def average(sums: Sequence[ParamTree], total: float, like: ParamTree) -> ParamTree:
    """Divide the sum of the blocks' weighted sums by `total`, the sum of the weights, in the dtype of `like`."""
    return {key: (reduce(torch.add, [part[key] for part in sums]) / total).to(like[key].dtype) for key in like}
