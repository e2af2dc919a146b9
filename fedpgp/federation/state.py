"""The state of a federation between two rounds, and averages of shared parameters (FedAvg, McMahan et al., 2017)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from fedpgp.core.tree import ParamTree


@dataclass(frozen=True)
class State:
    """Everything that a federation keeps from one round to the next."""

    round: int  # last completed round; 0: none
    shared: ParamTree  # the server's parameters
    personal: ParamTree  # the clients' parameters, stacked: every entry is (K, ...)


def weighted_sum(shared: ParamTree, weights: torch.Tensor) -> ParamTree:
    """Sum the stacked parameters (K, ...) of a block in client order, in float64, with `weights` (K,)."""
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
