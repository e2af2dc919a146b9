"""FedAvgM (Hsu, Qi and Brown, 2019): FedAvg with momentum on the server."""

from typing import ClassVar

import torch
from pydantic import Field

from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings


class FedAvgMSettings(RuleSettings):
    """Settings of FedAvgM."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """momentum of the server; 0: FedAvg"""


class FedAvgM(BaseRule):
    """v <- momentum v + D, x <- x + lr v, with D = sum_i n_i y_i / sum_i n_i - x (section 4.2)."""

    name: ClassVar[str] = "fedavgm"
    paper: ClassVar[str] = "Hsu et al., 2019"
    settings_type: ClassVar[type[Settings]] = FedAvgMSettings
    settings: FedAvgMSettings

    def init(self, shared: ParamTree, num_clients: int) -> ParamTree:
        """v = 0."""
        return {key: torch.zeros_like(value) for key, value in shared.items()}

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        v = {key: self.settings.momentum * server[key] + (received.mean[key] - value) for key, value in shared.items()}
        return v, {key: value + self.settings.lr * v[key] for key, value in shared.items()}
