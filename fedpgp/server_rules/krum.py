"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017): the updates that are closest to most others."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.server_rules.base import BaseRule, Received, RuleSettings, Uploads, Weighting
from fedpgp.server_rules.columns import by_column, chunk_bytes, chunks


class KrumSettings(RuleSettings):
    """Settings of Krum."""

    f: int = Field(1, ge=0)
    """attackers that are tolerated in a round, which must have at least 2 f + 3 clients"""


class Krum(BaseRule):
    """x <- x + lr (y_i - x) for the client i of least score: sum of |y_i - y_j|^2 over its M - f - 2 nearest clients j.

    Section 4; of equal scores the first client's counts. The distances of all M clients take 8 M^2 bytes. In a round in
    which fewer than 2 f + 3 updates arrive, the shared parameters stay as they are.
    """

    name: ClassVar[str] = "krum"
    paper: ClassVar[str] = "Blanchard et al., NeurIPS 2017"
    settings_type: ClassVar[type[Settings]] = KrumSettings
    uploads: ClassVar[Uploads] = "stack"
    weighting: Weighting = "equal"
    settings: KrumSettings

    @property
    def fewest(self) -> int:
        """2 f + 3."""
        return 2 * self.settings.f + 3

    def working_bytes(self, clients: int, shared: ParamTree) -> int:
        """See `ServerRule`."""
        return 8 * clients**2 + 4 * chunk_bytes(clients, shared)

    def aggregate(self, server: ParamTree, shared: ParamTree, received: Received) -> tuple[ParamTree, ParamTree]:
        """See `ServerRule`."""
        chosen = scores(received.stack, shared, self.settings.f).argsort(stable=True)[: self.chosen(received)]
        return server, self.step(shared, by_column(received.stack, lambda part: part[chosen].mean(0)))

    def chosen(self, received: Received) -> int:
        """The number of clients that count."""
        return 1


class MultiKrumSettings(KrumSettings):
    """Settings of Multi-Krum."""

    m: int | None = Field(None, ge=1)
    """number of clients that count; null: all that take part but f"""


class MultiKrum(Krum):
    """x <- x + lr (mean of y_i over the m clients of least scores - x); see `Krum` for the score."""

    name: ClassVar[str] = "multi_krum"
    settings_type: ClassVar[type[Settings]] = MultiKrumSettings
    settings: MultiKrumSettings

    @property
    def fewest(self) -> int:
        """2 f + 3, and m."""
        return max(super().fewest, self.settings.m or 0)

    def chosen(self, received: Received) -> int:
        """See `Krum`."""
        return self.settings.m or len(received.clients) - self.settings.f


def scores(stack: ParamTree, shared: ParamTree, f: int) -> Tensor:
    """Krum's scores (M,), float64, from what M clients sent (M, ...).

    The distances come from inner products of the updates y_i - x.
    """
    clients = len(next(iter(stack.values()), ()))
    products = torch.zeros(clients, clients, dtype=torch.float64)
    for key, columns, part in chunks(stack):
        part -= shared[key].reshape(-1)[columns]
        products.addmm_(part, part.T)
    squares = products.diagonal().clone()
    found = torch.empty_like(squares)
    for client, row in enumerate(products):
        distances = row.mul_(-2).add_(squares[client]).add_(squares).clamp_(min=0)
        distances[client] = torch.inf
        found[client] = distances.sort().values[: clients - f - 2].sum()
    return found
