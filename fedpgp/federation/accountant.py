"""The privacy accountant: what the rounds of a run spend of their guarantee, computed by the library dp-accounting."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Literal

Sampling = Literal["fixed", "poisson"]
ORDERS = (*(1 + tenth / 10 for tenth in range(1, 50)), *range(6, 33), 40, 48, 64, 128, 512, 1024)
"""Of the Renyi divergences: fewer than the library's, which take 5 times as long for 1 or 2% of epsilon."""
LOSS_INTERVAL = 1e-3
"""Steps in which privacy losses are counted, with epsilon rounded up: by less than 1% in 10,000 rounds with z = 1."""


@dataclass(frozen=True)
class Accountant:
    """Accountant of the sum of the clipped updates of a round, with noise N(0, (z C)^2) on each of its values.

    z is the noise multiplier and C the clip norm. Of K clients m take part in a round, and the m of every round is
    divided by, so neither K nor m counts as private. What two neighbouring federations are depends on the sampling,
    because the bound of each is known for one kind of neighbours alone:

    - m = K: T rounds are one Gaussian mechanism with z / T^(1/2), whose epsilon is exact. Neighbours: one client added
      or removed (its update becomes 0), which changes the sum by at most C; noise per sensitivity z.
    - `poisson`, each client with probability q = m / K: the distribution of the privacy loss of the sampled Gaussian
      mechanism, rounded up and convolved with itself. Neighbours as above; noise per sensitivity z.
    - `fixed`, m of K without replacement: Renyi divergences (Wang, Balle and Kasiviswanathan, AISTATS 2019, theorem
      27), which add up over rounds. Neighbours: one client replaced by another, which changes the sum by at most 2 C;
      noise per sensitivity z / 2. Where nearly all clients are sampled, the bound without sampling is the lower one.
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
        spent: float = _epsilon(self, noise_multiplier, rounds)
        return spent

    def least_noise(self, epsilon: float, rounds: int) -> float:
        """The least noise multiplier with which the rounds spend at most `epsilon`, rounded up.

        To three digits, below 0.1 to three decimals, so that what is printed is what is used.
        """
        enough = next(z for z in (10.0**k for k in count()) if self.epsilon(z, rounds) <= epsilon)
        steps = [number * enough / 1000 for number in range(1, 1000)]
        index = bisect_left(steps, -epsilon, key=lambda z: -self.epsilon(z, rounds))
        return [*steps, enough][index]

    def most_rounds(self, noise_multiplier: float, epsilon: float, rounds: int) -> int:
        """How many of the rounds fit into a budget: 0 to `rounds`."""
        return bisect_right(range(1, rounds + 1), epsilon, key=lambda number: self.epsilon(noise_multiplier, number))


@cache
def _epsilon(accountant: Accountant, z: float, rounds: int) -> float:
    if rounds == 0 or z == 0:
        return math.inf if rounds else 0.0
    import dp_accounting as dp

    def gaussian(noise: float) -> float:
        """Without sampling the rounds are one Gaussian mechanism."""
        return float(dp.get_epsilon_gaussian(noise / rounds**0.5, accountant.delta))

    clients, participants = accountant.clients, accountant.participants
    if participants == clients:
        return gaussian(z)
    if accountant.sampling == "fixed":
        event = dp.SampledWithoutReplacementDpEvent(clients, int(participants), dp.GaussianDpEvent(z / 2))
        renyi = dp.rdp.RdpAccountant(ORDERS, dp.NeighboringRelation.REPLACE_ONE)
        return min(gaussian(z / 2), float(renyi.compose(event, rounds).get_epsilon(accountant.delta)))
    interval = max(LOSS_INTERVAL, LOSS_INTERVAL / (10 * z) ** 2)  # with little noise losses are large
    losses = dp.pld.PLDAccountant(value_discretization_interval=interval)
    sampled = dp.PoissonSampledDpEvent(participants / clients, dp.GaussianDpEvent(z))
    return float(losses.compose(sampled, rounds).get_epsilon(accountant.delta))
