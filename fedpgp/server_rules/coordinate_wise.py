"""Coordinate-wise median and trimmed mean (Yin et al., ICML 2018): each value from those of all participants."""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings, Uploads, Weighting
from fedpgp.server_rules.columns import by_column, chunk_bytes


class Median(BaseRule):
    """x_j <- x_j + lr (med_i y_ij - x_j) for each value j (definition 1): all participants count alike.

    Of an even number of participants it is the mean of the two in the middle.
    """

    name: ClassVar[str] = "median"
    paper: ClassVar[str] = "Yin et al., ICML 2018"
    uploads: ClassVar[Uploads] = "stack"
    weighting: Weighting = "equal"

    def working_bytes(self, clients: int, shared: ParamTree) -> int:
        """See `ServerRule`."""
        return 5 * chunk_bytes(clients, shared)

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        return server, self.step(shared, by_column(received.stack, self._of_columns))

    def _of_columns(self, values: Tensor) -> Tensor:
        return _middle(values, (len(values) - 1) // 2)


class TrimmedMeanSettings(RuleSettings):
    """Settings of the trimmed mean."""

    trim: float = Field(0.1, ge=0, lt=0.5)
    """share of the participants whose values are left out at each end, rounded down; 0: mean"""


class TrimmedMean(Median):
    """x_j <- x_j + lr (mean of y_ij without the floor(trim M) smallest and largest - x_j) (definition 2).

    All M participants count alike.
    """

    name: ClassVar[str] = "trimmed_mean"
    settings_type: ClassVar[type[Settings]] = TrimmedMeanSettings
    settings: TrimmedMeanSettings

    def _of_columns(self, values: Tensor) -> Tensor:
        return _middle(values, int(self.settings.trim * len(values) + 1e-9))  # 0.29 of 100 is 28.99... on a machine


def _middle(values: Tensor, cut: int) -> Tensor:
    """The mean of each column (M, c) without its `cut` smallest and `cut` largest values."""
    if cut == 0:
        return values.mean(0)
    last = len(values) - cut - 1
    ordered = np.partition(values.numpy(), (cut, last), axis=0)
    return torch.from_numpy(ordered[cut : last + 1]).mean(0)
