"""FedAdagrad, FedYogi and FedAdam (Reddi et al., ICLR 2021): adaptive optimizers on the server."""

from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings


class FedOptSettings(RuleSettings):
    """Settings of an adaptive rule."""

    lr: float = Field(0.01, gt=0)
    """server learning rate (eta)"""
    beta_1: float = Field(0.9, ge=0, lt=1)
    """decay of the mean of the updates; 0: none"""
    tau: float = Field(1e-3, gt=0)
    """degree of adaptivity, and where sqrt(v) starts: the larger, the less the steps of single values differ"""


class FedAdagradSettings(FedOptSettings):
    """Settings of FedAdagrad."""

    beta_1: float = Field(0.0, ge=0, lt=1)
    """decay of the mean of the updates; 0: none, as in the paper's experiments"""


class DecayingSettings(FedOptSettings):
    """Settings of FedYogi and FedAdam."""

    beta_2: float = Field(0.99, ge=0, lt=1)
    """decay of the second moment"""


class FedOpt(BaseRule):
    """m <- beta_1 m + (1 - beta_1) D, x <- x + lr m / (sqrt(v) + tau), with D = sum_i n_i y_i / sum_i n_i - x.

    Algorithm 2, with v_0 = tau^2 and without correction of bias. Departs from it in the weights, which are those of the
    paper's experiments: by numbers of images. FedAdam with beta_1 = beta_2 = 0 is FedAvg for lr = tau towards infinity.
    """

    paper: ClassVar[str] = "Reddi et al., ICLR 2021"
    settings: FedOptSettings

    def init(self, shared: ParamTree, num_clients: int) -> ParamTree:
        """m = 0 and v = tau^2, the least that it can be."""
        m = {f"m.{key}": torch.zeros_like(value) for key, value in shared.items()}
        return m | {f"v.{key}": torch.full_like(value, self.settings.tau**2) for key, value in shared.items()}

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        state: ParamTree = {}
        stepped: ParamTree = {}
        for key, x in shared.items():
            delta = received.mean[key] - x
            m = self.settings.beta_1 * server[f"m.{key}"] + (1 - self.settings.beta_1) * delta
            v = self.second_moment(server[f"v.{key}"], delta.square())
            stepped[key] = x + self.settings.lr * m / (v.sqrt() + self.settings.tau)
            state |= {f"m.{key}": m, f"v.{key}": v}
        return {key: state[key] for key in server}, stepped

    @abstractmethod
    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """The next v, from the last one and D^2."""


class FedAdagrad(FedOpt):
    """v <- v + D^2."""

    name: ClassVar[str] = "fedadagrad"
    settings_type: ClassVar[type[Settings]] = FedAdagradSettings

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """See `FedOpt`."""
        return v + squared


class FedYogi(FedOpt):
    """v <- v - (1 - beta_2) D^2 sign(v - D^2)."""

    name: ClassVar[str] = "fedyogi"
    settings_type: ClassVar[type[Settings]] = DecayingSettings
    settings: DecayingSettings

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """See `FedOpt`."""
        return v - (1 - self.settings.beta_2) * squared * (v - squared).sign()


class FedAdam(FedOpt):
    """v <- beta_2 v + (1 - beta_2) D^2."""

    name: ClassVar[str] = "fedadam"
    settings_type: ClassVar[type[Settings]] = DecayingSettings
    settings: DecayingSettings

    def second_moment(self, v: Tensor, squared: Tensor) -> Tensor:
        """See `FedOpt`."""
        return self.settings.beta_2 * v + (1 - self.settings.beta_2) * squared
