"""The interface of a server rule: how the parameters that clients send become those of the next round."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree, num_values

Uploads = Literal["sum", "stack"]
"""What a rule needs: a weighted sum, in memory that does not depend on the number of clients, or every update."""

Weighting = Literal["images", "equal"]
"""The weight of a client: its number of training images, or 1."""


@dataclass(frozen=True)
class Received:
    """What the server has of a round: M clients whose updates count."""

    clients: np.ndarray  # (M,) sorted; under differential privacy nobody, and weights likewise: only the mean is public
    weights: Tensor  # (M,) float64
    mean: ParamTree  # weighted mean of what they sent, without the client axis; empty for `stack`
    stack: ParamTree  # (M, ...) what each of them sent; empty for `sum`
    num_clients: int  # that ever train
    generator: torch.Generator  # of this rule and round


class ServerRule(Protocol):
    """The server's half of an algorithm. Parameters that the server holds have no client axis."""

    name: ClassVar[str]
    paper: ClassVar[str]
    settings_type: ClassVar[type[Settings]]
    uploads: ClassVar[Uploads]

    def __init__(self, settings: Any) -> None:
        """Build the rule from an instance of its `settings_type`."""

    @property
    def settings(self) -> Settings:
        """Frozen settings; the docstring of a field explains it."""

    @property
    def weighting(self) -> Weighting:
        """The weights of the clients."""

    @property
    def fewest(self) -> int:
        """Fewest updates that it can aggregate; a round with fewer leaves the shared parameters as they are."""

    def working_bytes(self, clients: int, shared: ParamTree) -> int:
        """Most bytes that `aggregate` needs beside its arguments, for so many participants."""

    def init(self, shared: ParamTree, num_clients: int) -> ParamTree:
        """The server's own state before the first round, for example momentum. It is part of every checkpoint.

        `num_clients` are all of the federation: every client's number is below it, also where some never train.
        """

    def broadcast(self, server: ParamTree, shared: ParamTree, clients: np.ndarray) -> tuple[ParamTree, ParamTree]:
        """What is sent to all of the `clients` (M,), and what to each of them alone (M, ...).

        The first has at least the shared parameters and is the same whatever the clients are; an entry of the second
        takes the place of one with its key. Each client trains from what it is sent, and after the round its model is
        tested with what it would be sent next. Called for a part of a round's clients at a time.
        """

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """The server's next state and the next shared parameters, of the same dtypes.

        Changes none of its arguments. Not called in a round of which fewer than `fewest` updates count, except under
        differential privacy, where noise counts too.
        """


@runtime_checkable
class ClientHalf(Protocol):
    """A rule that also takes part in local training, for example with control variates."""

    def init_kept(self, shared: ParamTree) -> ParamTree:
        """What each client keeps from one participation to the next (without the client axis)."""

    def correction(self, kept: ParamTree, received: ParamTree) -> ParamTree:
        """What is added to the gradients of the shared parameters in every step (K, ...)."""

    def after_training(
        self, kept: ParamTree, received: ParamTree, trained: ParamTree, travel: Mapping[str, Tensor]
    ) -> tuple[ParamTree, ParamTree]:
        """What each client keeps now (K, ...), and what it sends in addition to its shared parameters (K, ...).

        Args:
            kept: what the clients kept before (K, ...).
            received: what the server sent.
            trained: the shared parameters after local training (K, ...).
            travel: of each shared key, how far a constant gradient of 1 would have moved it (K,).
        """


@runtime_checkable
class SendsToEach(Protocol):
    """A rule that keeps something of every client and sends each one entries of its own, which may be padded."""

    def held_bytes(self, clients: int, shared: ParamTree) -> int:
        """Most bytes that it keeps of so many clients, and that it sends to all of them in an evaluation."""

    def sent_bytes(self, own: ParamTree) -> int:
        """Bytes of what is sent to some clients alone (M, ...), see `ServerRule.broadcast`, without padding."""


class RuleSettings(Settings):
    """Settings of every rule."""

    lr: float = Field(1.0, gt=0)
    """server learning rate: factor on the step from the old shared parameters to the new ones; 1: the whole step"""


class BaseRule:
    """Defaults of a rule: weights by images, no state, and the shared parameters for everyone.

    `working_bytes` is that of a rule that copies the stack to float64.
    """

    settings_type: ClassVar[type[Settings]] = RuleSettings
    uploads: ClassVar[Uploads] = "sum"
    weighting: Weighting = "images"

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings

    def init(self, shared: ParamTree, num_clients: int) -> ParamTree:
        """See `ServerRule`."""
        return {}

    def broadcast(self, server: ParamTree, shared: ParamTree, clients: np.ndarray) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        return shared, {}

    @property
    def fewest(self) -> int:
        """See `ServerRule`."""
        return 1

    def working_bytes(self, clients: int, shared: ParamTree) -> int:
        """See `ServerRule`."""
        return 8 * clients * num_values(shared) if self.uploads == "stack" else 0

    def step(self, shared: ParamTree, target: ParamTree) -> ParamTree:
        """`shared + lr (target - shared)`; exactly `target` for lr 1. Other keys of `target` are left out."""
        lr = self.settings.lr
        return {key: target[key] if lr == 1 else x + lr * (target[key] - x) for key, x in shared.items()}
