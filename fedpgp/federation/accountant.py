"""The privacy accountant: what the rounds of a run spend of their guarantee, computed by the library dp-accounting."""

from __future__ import annotations

import logging
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, Literal

Sampling = Literal["fixed", "poisson"]
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 50)), *range(6, 33), 40, 48, 64, 128, 512, 1024)
"""Of the Renyi divergences: fewer than the library's, which takes 5 times as long in each round to save 1 or 2% of epsilon."""


@dataclass(frozen=True)
class Accountant:
    """Renyi accountant of the sum of the clipped updates of a round, with noise N(0, (z C)^2) on each of its values.

    z is the noise multiplier and C the clip norm. Of K clients m take part in a round, and the m of every round is
    divided by, so neither K nor m counts as private. What two neighbouring federations are depends on the sampling,
    because the library has a bound for one kind of neighbours alone for each of them:

    - m = K: the Gaussian mechanism. Neighbours: one client added or removed (its update becomes 0), which changes the
      sum by at most C; noise per sensitivity z.
    - `poisson`, each client with probability q = m / K: the sampled Gaussian mechanism (Mironov, Talwar and Zhang,
      2019). Neighbours as above; noise per sensitivity z.
    - `fixed`, m of K without replacement: Wang, Balle and Kasiviswanathan (AISTATS 2019, theorem 27). Neighbours: one
      client replaced by another, which changes the sum by at most 2 C; noise per sensitivity z / 2. Where that bound is
      above the one without amplification, by sampling nearly all clients, the latter holds.

    The Renyi divergences of the rounds add up; (epsilon, delta) follows from them by the best of `ORDERS`.
    """

    sampling: Sampling
    clients: int
    """K"""
    participants: float
    """m: the number of clients in a round, for `poisson` the expected one"""
    delta: float

    @property
    def neighbours(self) -> str:
        """What two federations that the guarantee makes hard to tell apart differ in."""
        replaced = self.sampling == "fixed" and self.participants < self.clients
        return "one client replaced" if replaced else "one client added or removed"

    def epsilon(self, noise_multiplier: float, rounds: int) -> float:
        """What these rounds spend; infinite without noise."""
        return _epsilon(self, noise_multiplier, rounds)

    def least_noise(self, epsilon: float, rounds: int) -> float:
        """The least noise multiplier with which the rounds spend at most `epsilon`, rounded up.

        To three digits, below 0.1 to three decimals, so that what is printed is what is used.
        """
        enough = next(10**k for k in count() if self.epsilon(10**k, rounds) <= epsilon)
        steps = [number * enough / 1000 for number in range(1, 1000)]
        index = bisect_left(steps, -epsilon, key=lambda z: -self.epsilon(z, rounds))
        return [*steps, float(enough)][index]

    def most_rounds(self, noise_multiplier: float, epsilon: float, rounds: int) -> int:
        """How many of the rounds fit into a budget: 0 to `rounds`."""
        return bisect_right(range(1, rounds + 1), epsilon, key=lambda number: self.epsilon(noise_multiplier, number))


@cache
def _epsilon(accountant: Accountant, noise_multiplier: float, rounds: int) -> float:
    if rounds == 0 or noise_multiplier == 0:
        return math.inf if rounds else 0.0
    spent = (
        _fresh(relation).compose(event(noise_multiplier), rounds).get_epsilon(accountant.delta)
        for relation, event in _bounds(accountant)
    )
    return float(min(spent))


def _bounds(accountant: Accountant) -> list[tuple[Any, Any]]:
    """Neighbouring relation and event of a round, a function of the noise multiplier, of each bound that holds."""
    import dp_accounting as dp

    clients, participants = accountant.clients, accountant.participants
    relations = dp.NeighboringRelation
    if participants == clients:
        return [(relations.ADD_OR_REMOVE_ONE, dp.GaussianDpEvent)]
    if accountant.sampling == "poisson":
        q = participants / clients
        return [(relations.ADD_OR_REMOVE_ONE, lambda z: dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(z)))]
    return [
        (
            relations.REPLACE_ONE,
            lambda z: dp.SampledWithoutReplacementDpEvent(clients, int(participants), dp.GaussianDpEvent(z / 2)),
        ),
        (relations.REPLACE_ONE, lambda z: dp.GaussianDpEvent(z / 2)),
    ]


def _fresh(relation: Any) -> Any:
    """An accountant that has spent nothing. The library's note that it leaves out an order is not shown."""
    from dp_accounting import rdp

    logging.getLogger("absl").setLevel(logging.ERROR)
    return rdp.RdpAccountant(ORDERS, neighboring_relation=relation)
