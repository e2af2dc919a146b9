"""The state of a federation between two rounds, and averages of shared parameters (FedAvg, McMahan et al., 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.core.tree import ParamTree
from fedpgp.federation.client_rows import ClientRows, InMemory

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class State:
    """Everything that a federation keeps from one round to the next.

    Stacked tensors given as `personal` or `kept` are held in memory.
    """

    round: int  # last completed round; 0: none
    shared: ParamTree  # the server's parameters
    personal: ClientRows  # the clients' parameters, stacked: every entry is (K, ...)
    server: ParamTree = field(default_factory=dict)  # the server rule's own state
    kept: ClientRows = field(default_factory=lambda: InMemory({}))  # (K, ...) what the rule lets them keep, or momentum
    privacy: ParamTree = field(default_factory=dict)  # the clip norm, if it adapts

    def __post_init__(self) -> None:
        for name in ("personal", "kept"):
            if not isinstance(rows := getattr(self, name), ClientRows):
                object.__setattr__(self, name, InMemory(rows))


def weighted_sum(shared: ParamTree, weights: torch.Tensor) -> ParamTree:
    """Sum the stacked parameters (K, ...) of a block in client order, in float64, with `weights` (K,)."""
    import torch

    return {key: torch.tensordot(weights.double(), value.double(), dims=1) for key, value in shared.items()}


def add(total: ParamTree, part: Mapping[str, np.ndarray]) -> None:
    """Add the weighted sum of a block to the `total` of the blocks before it, in place."""
    import torch

    for key, value in part.items():
        if key in total:
            total[key].numpy()[...] += value
        else:
            total[key] = torch.tensor(value)


class Stack:
    """What clients send, in the order of the clients, in arrays that are allocated once.

    Args:
        clients: all that may send, sorted.
    """

    def __init__(self, clients: np.ndarray) -> None:
        self._clients, self._sent = clients, np.zeros(len(clients), bool)
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, clients: np.ndarray, part: Mapping[str, np.ndarray]) -> None:
        """Add what some clients send (M, ...); nothing if `part` is empty."""
        places = np.searchsorted(self._clients, clients)
        for key, value in part.items():
            if key not in self._arrays:
                self._arrays[key] = np.empty((len(self._clients), *value.shape[1:]), value.dtype)
            self._arrays[key][places] = value
        self._sent[places] = True

    def filled(self) -> ParamTree:
        """What has been added (M, ...); nothing can be added later."""
        import torch

        for value in self._arrays.values():
            for place, sent in enumerate(np.flatnonzero(self._sent)):  # row by row: there may be no room for a copy
                if place != sent:
                    value[place] = value[sent]
        return {key: torch.from_numpy(value[: self._sent.sum()]) for key, value in self._arrays.items()}


def average(sums: Sequence[ParamTree], total: float, like: ParamTree) -> ParamTree:
    """Divide the sum of the blocks' weighted sums by `total`, the sum of the weights.

    In the dtype of `like`; keys that it does not have are float32.
    """
    import torch

    means = {key: reduce(torch.add, [part[key] for part in sums]) / total for key in sums[0]}
    return {key: value.to(like[key].dtype if key in like else torch.float32) for key, value in means.items()}
