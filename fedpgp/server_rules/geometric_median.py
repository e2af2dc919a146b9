"""The geometric median, RFA (Pillutla et al., IEEE Transactions on Signal Processing, 2022)."""

from typing import ClassVar

import torch
from pydantic import Field

from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree, num_values
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings, Uploads
from fedpgp.server_rules.columns import chunk_bytes, chunks, weighted_mean


class GeometricMedianSettings(RuleSettings):
    """Settings of the geometric median."""

    iterations: int = Field(3, ge=0)
    """iterations of the smoothed Weiszfeld algorithm (R); 0: FedAvg"""
    nu: float = Field(1e-6, gt=0)
    """least distance that an update counts with; the larger, the more the rule is FedAvg"""


class GeometricMedian(BaseRule):
    """x <- x + lr (z - x), with z near the minimum of sum_i a_i |z - y_i|, where a_i is the share of i of the images.

    Smoothed Weiszfeld (algorithm 2): b_i = a_i / max(nu, |z - y_i|), z <- sum_i b_i y_i / sum_i b_i, from the weighted
    mean on (as the authors' code). The norm is over all shared parameters together.
    """

    name: ClassVar[str] = "geometric_median"
    paper: ClassVar[str] = "Pillutla et al., 2022"
    settings_type: ClassVar[type[Settings]] = GeometricMedianSettings
    uploads: ClassVar[Uploads] = "stack"
    settings: GeometricMedianSettings

    def working_bytes(self, clients: int, shared: ParamTree) -> int:
        """See `ServerRule`."""
        return 2 * 8 * num_values(shared) + 3 * chunk_bytes(clients, shared)

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        z = weighted_mean(received.stack, received.weights)
        for _ in range(self.settings.iterations):
            squares = torch.zeros_like(received.weights)
            for key, columns, part in chunks(received.stack):
                squares += part.sub_(z[key].view(-1)[columns]).square_().sum(1)
            z = weighted_mean(received.stack, received.weights / squares.sqrt().clamp(min=self.settings.nu))
        return server, self.step(shared, {key: value.to(shared[key].dtype) for key, value in z.items()})
