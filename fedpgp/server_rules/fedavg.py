"""FedAvg (McMahan et al., AISTATS 2017): the weighted mean of the clients' parameters; and the unweighted one."""

from typing import ClassVar

from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings, Weighting


class FedAvg(BaseRule):
    """x <- x + lr (sum_i n_i y_i / sum_i n_i - x), with n_i training images (algorithm 1; there lr = 1)."""

    name: ClassVar[str] = "fedavg"
    paper: ClassVar[str] = "McMahan et al., AISTATS 2017"

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        return server, self.step(shared, received.mean)


class Mean(FedAvg):
    """x <- x + lr (sum_i y_i / M - x): all M participants count alike."""

    name: ClassVar[str] = "mean"
    paper: ClassVar[str] = "the unweighted mean"
    weighting: Weighting = "equal"


FEDAVG = FedAvg(RuleSettings())
