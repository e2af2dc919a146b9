"""Differential privacy of clients (DP-FedAvg, McMahan et al., ICLR 2018): clipped updates, and noise on their sum.

In round t a client whose shared parameters have become y_i sends d_i = (y_i - x_t) min(1, C / ||y_i - x_t||), all
shared keys together, also buffers such as the statistics of batch normalization. A client that is lost or excluded
sends 0. With the participants S, m of them expected, the server rule gets as the mean of what the clients sent

    x_t + (sum over S of d_i + N(0, (z C)^2 I)) / m,

and nothing else of the round: no client, no weight and no number of participants. Whatever it computes is a function
of released values, so each rule that needs no more than the mean keeps the guarantee, also one from outside the
package. All clients count alike, because weights by images would be private as well. `accountant` says what is spent.

What is protected: the shared parameters of all rounds, and with adaptive clipping the clip norms, against everyone who
sees them but not the messages of single clients. With `where: client` each participant adds N(0, (z C)^2 / m I) to its
own update: the sum is as noisy, but a single update is protected by the sum alone, which needs secure aggregation, and
the other clients know their own parts of the noise. Personal parameters never leave a client and need no noise.

What is not protected: everything else that a run stores, which in a deployment stays with the clients: losses,
accuracies and events of each client, who took part in a round, numbers of images, the partition, and whether policy
`fail` ended the run. Noise is a function of the seed, so that a run can be repeated: whoever knows the seed can remove
it. It is drawn in float64 and released in float32, with no defence against attacks on floating-point numbers (Mironov,
CCS 2012). The spending is that of one run: several runs on the same clients, such as the trials of a sweep, add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedpgp.core.seeding import torch_generator
from fedpgp.core.tree import ParamTree
from fedpgp.federation.accountant import Accountant
from fedpgp.federation.messages import Call
from fedpgp.federation.metrics import PRIVACY
from fedpgp.federation.state import State, weighted_sum

CLIP_NORM = "clip_norm"
"""Key in `State.privacy`."""
CLIP_RATE = 0.2
"""Learning rate of adaptive clipping, that of the paper."""


@dataclass(frozen=True)
class Mechanism:
    """What is done to the updates of every round."""

    clip_norm: float
    """C, or with `adaptive_clip` that of round 1"""
    noise_multiplier: float
    """z, for the sum and the votes together; 0: no noise"""
    adaptive_clip: bool
    where: Literal["server", "client"]
    accountant: Accountant

    @property
    def vote_noise(self) -> float:
        """Standard deviation sigma_b of the noise on the sum of the votes on the clip norm.

        m / 20 as in the paper (section 3.1), but at least z, because z_sum exists for 2 sigma_b > z only.
        """
        z = self.noise_multiplier
        return max(self.accountant.participants / 20, z) if self.adaptive_clip and z else 0.0

    @property
    def sum_noise(self) -> float:
        """Noise multiplier of the sum of the updates.

        z, or z_sum = (z^-2 - (2 sigma_b)^-2)^(-1/2) with adaptive clipping: both releases of a round together are as
        private as one with z (Andrew et al., NeurIPS 2021, theorem 1).
        """
        if not self.vote_noise:
            return self.noise_multiplier
        return float((self.noise_multiplier**-2 - (2 * self.vote_noise) ** -2) ** -0.5)

    def initial(self) -> ParamTree:
        """`State.privacy` before the first round: the clip norm, if it changes."""
        return {CLIP_NORM: torch.tensor(self.clip_norm, dtype=torch.float64)} if self.adaptive_clip else {}

    def clip_norm_of(self, state: State) -> float:
        """The clip norm of the round after `state`."""
        return float(state.privacy[CLIP_NORM]) if self.adaptive_clip else self.clip_norm

    def upload(
        self,
        shared: ParamTree,
        received: Mapping[str, Tensor],
        counts: Tensor,
        call: Call,
        seed: int,
    ) -> tuple[ParamTree, float]:
        """The sum of what the clients of a block send, and of their votes on the clip norm.

        Args:
            shared: the shared parameters after local training (K, ...).
            received: what they started from, with or without the client axis.
            counts: the clients whose update counts (K,); the others send 0, and their part of the noise.
            call: the clients, the round, and C.
            seed: of the run.
        """
        updates, votes = clipped(shared, received, counts, call.clip_norm)
        if self.where == "client":
            share = self.accountant.participants**-0.5
            for index, client in enumerate(call.clients):
                generator = torch_generator(seed, "noise", call.round, int(client))
                for value in updates.values():
                    value[index] += noise(value[index], share * self.sum_noise * call.clip_norm, generator)
                votes[index] += noise(votes[index], share * self.vote_noise, generator)
        return weighted_sum(updates, torch.ones_like(votes)), float(votes.sum())

    def release(
        self, total: ParamTree, votes: float, state: State, generator: torch.Generator
    ) -> tuple[ParamTree, ParamTree]:
        """The mean that the server rule gets, see the module, and the next `State.privacy`.

        With adaptive clipping b = 1/2 + (votes + N(0, sigma_b^2)) / m estimates the share of the updates that are not
        clipped, and C <- C exp(-0.2 (b - 1/2)) follows the median of their lengths (Andrew et al., algorithm 1).

        Args:
            total: sum of what the clients sent; empty: no client took part.
            votes: sum of their votes.
            state: before the round.
            generator: of the noise of this round, with `where: server`.
        """
        clip_norm, m = self.clip_norm_of(state), self.accountant.participants
        by_server = self.where == "server"
        mean = {}
        for key, x in state.shared.items():
            summed = total[key] if key in total else torch.zeros_like(x, dtype=torch.float64)
            if by_server:
                summed = summed + noise(summed, self.sum_noise * clip_norm, generator)
            mean[key] = (x.double() + summed / m).to(x.dtype)
        if not self.adaptive_clip:
            return mean, state.privacy
        noisy = votes + (float(noise(torch.zeros(()), self.vote_noise, generator)) if by_server else 0.0)
        return mean, {CLIP_NORM: torch.tensor(clip_norm * math.exp(-CLIP_RATE * noisy / m), dtype=torch.float64)}

    def spent(self, state: State, number: int) -> dict[str, float]:
        """What the row of a round says, from the state before it: clip norm, delta, and epsilon of all rounds so far.

        Without noise there is no guarantee, and neither of the last two.
        """
        epsilon, clip_norm = self.accountant.epsilon(self.noise_multiplier, number), self.clip_norm_of(state)
        row = dict(zip(PRIVACY, (epsilon, self.accountant.delta, clip_norm), strict=True))
        return row if math.isfinite(epsilon) else {PRIVACY[-1]: clip_norm}


def clipped(
    shared: ParamTree, received: Mapping[str, Tensor], counts: Tensor, clip_norm: float
) -> tuple[ParamTree, Tensor]:
    """Updates (K, ...) in float64, none longer than `clip_norm` over all keys together, and the clients' votes (K,).

    A client votes 1/2 if its update was not too long, which lowers the clip norm, and -1/2 otherwise. Of a client that
    does not count both are 0.
    """
    changes = {key: value.double() - received[key].double() for key, value in shared.items()}
    squares = torch.stack([change.flatten(1).square().sum(1) for change in changes.values()])
    length = squares.sum(0).sqrt()
    scale = clip_norm / length.clamp(min=clip_norm)
    updates = {}
    for key, change in changes.items():
        by_client = (-1, *[1] * (change.dim() - 1))
        updates[key] = torch.where(counts.view(by_client), change * scale.view(by_client), 0.0)
    return updates, torch.where(counts, torch.where(length <= clip_norm, 0.5, -0.5).double(), 0.0)


def noise(like: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise in float64, drawn on the CPU; zeros for a standard deviation of 0."""
    if not std:
        return torch.zeros_like(like, dtype=torch.float64)
    return (std * torch.randn(like.shape, generator=generator, dtype=torch.float64)).to(like.device)
