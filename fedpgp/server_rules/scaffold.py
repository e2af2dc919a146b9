"""SCAFFOLD (Karimireddy et al., ICML 2020): control variates against the drift of clients."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import BaseRule, Received, Weighting

PREFIX = "control."


class Scaffold(BaseRule):
    """Steps along g_i(y) - c_i + c; x <- x + lr mean_i(y_i - x), c <- c + M / K mean_i(c_i' - c_i) (algorithm 1).

    M of K clients take part, and all count alike. c_i' is option II: c_i - c + (x - y_i) / (steps lr_i), here also with
    momentum and a schedule of learning rates: the divisor is what a constant gradient of 1 would have moved. A client
    keeps its c_i; it sends c_i' - c_i beside its parameters, and receives c: twice the bytes of FedAvg each way.
    """

    name: ClassVar[str] = "scaffold"
    paper: ClassVar[str] = "Karimireddy et al., ICML 2020"
    weighting: Weighting = "equal"

    def init(self, shared: ParamTree, num_clients: int) -> ParamTree:
        """c = 0."""
        return {PREFIX + key: torch.zeros_like(value) for key, value in shared.items()}

    def broadcast(self, server: ParamTree, shared: ParamTree, clients: np.ndarray) -> tuple[ParamTree, ParamTree]:
        """x and c, for everyone."""
        return shared | server, {}

    def init_kept(self, shared: ParamTree) -> ParamTree:
        """c_i = 0."""
        return self.init(shared, 1)

    def correction(self, kept: ParamTree, received: ParamTree) -> ParamTree:
        """c - c_i (K, ...)."""
        return {key.removeprefix(PREFIX): received[key] - value for key, value in kept.items()}

    def after_training(
        self, kept: ParamTree, received: ParamTree, trained: ParamTree, travel: Mapping[str, Tensor]
    ) -> tuple[ParamTree, ParamTree]:
        """c_i', and c_i' - c_i = (x - y_i) / travel - c (K, ...)."""
        change = {}
        for key, y in trained.items():
            moved = travel[key].view(-1, *[1] * (y.dim() - 1))
            change[PREFIX + key] = (received[key] - y) / moved - received[PREFIX + key]
        return {key: value + change[key] for key, value in kept.items()}, change

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        share = len(received.clients) / received.num_clients
        c = {key: value + share * received.mean[key] for key, value in server.items()}
        return c, self.step(shared, received.mean)
