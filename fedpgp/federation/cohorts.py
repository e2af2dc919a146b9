"""Which clients train, are tested, and share a block in a round: functions of the seed, the round and the settings."""

from decimal import Decimal

import numpy as np

from fedpgp.config import FederationSettings
from fedpgp.core.seeding import numpy_generator
from fedpgp.methods.base import LimitsBlocks, Method

MANY = 5
"""From this number of blocks on, a worker that is done finds others to train."""
LONG = 1.5
"""A block with more than so many times the mean work of a block is cut."""


def participants(clients: int, participation: float) -> int:
    """The number of clients that train in a round: `max(1, floor(participation * clients))`.

    The product is that of the machine: 0.29 of 100 is 28.99..., so 28 clients.
    """
    return max(1, int(participation * clients))


def rounding(clients: int, federation: FederationSettings) -> str | None:
    """Say how many clients train in a round if that is not exactly the fraction asked for; None: it is.

    Args:
        clients: the number of those that ever train.
        federation: with the fraction and the kind of sampling.
    """
    participation = federation.participation
    count = participants(clients, participation)
    if federation.sampling == "poisson" or Decimal(repr(participation)) * clients == count:
        return None
    trained = f"{count} client{'' if count == 1 else 's'} of {clients}"
    return f"federation.participation={participation:g}: {trained} in a round, a fraction of {count / clients:.3g}"


def sample_clients(seed: int, round: int, clients: int, federation: FederationSettings) -> np.ndarray:
    """Which of the clients train in `round` (1, 2, ...), sorted: a function of the seed and the round.

    All for `participation` 1, and in round 1 with `everyone_first` (as in the authors' code). Otherwise `fixed` draws
    `participants` of them without replacement, and `poisson` each client by itself with probability `participation`:
    their number differs from round to round, and can be 0.
    """
    participation = federation.participation
    generator = numpy_generator(seed, "cohort", round)
    if participation == 1 or (federation.everyone_first and round == 1):
        return np.arange(clients)
    if federation.sampling == "poisson":
        return np.flatnonzero(generator.random(clients) < participation)
    return np.sort(generator.choice(clients, participants(clients, participation), replace=False))


def sample_tested(seed: int, round: int, clients: np.ndarray, most: int | None, group: str) -> np.ndarray:
    """Which of the clients of a group are tested after `round`, sorted: at most `most` of them; None: all."""
    if most is None or most >= len(clients):
        return clients
    return np.sort(numpy_generator(seed, "evaluated", group, round).choice(clients, most, replace=False))


def block_size(method: Method, federation: FederationSettings) -> int:
    """Clients of a block: `federation.block_size`, unless the method limits it."""
    return min(federation.block_size, method.max_block) if isinstance(method, LimitsBlocks) else federation.block_size


def blocks(clients: np.ndarray, block_size: int) -> list[np.ndarray]:
    """The sorted clients in blocks of `block_size`, independent of the number of workers.

    The last two of `MANY` or more are cut in half, so that at the end no worker waits long for another.
    """
    parts = [clients[start : start + block_size] for start in range(0, len(clients), block_size)]
    if len(parts) < MANY:
        return parts
    return parts[:-2] + [half for part in parts[-2:] for half in _halves(part)]


def training_blocks(clients: np.ndarray, block_size: int, steps: np.ndarray) -> list[np.ndarray]:
    """As `blocks`, but each of clients with about as many steps, so that few train on alone when others are done.

    Blocks are made in the order of the steps, the most first, and the long ones are cut in half: a worker must not be
    left with the clients that have the most. Fewer than `MANY` blocks stay in the order of the clients. Each block is
    sorted, and equal clients have the blocks of `blocks`.

    Args:
        clients: those that train in a round, sorted.
        steps: how many steps each of them takes in the round (K,), see `client.expected_steps`.
    """
    number = -(-len(clients) // block_size)
    if number < MANY:
        return blocks(clients, block_size)
    most, found = LONG * steps.sum() / number, []
    for part in blocks(np.argsort(-steps, kind="stable"), block_size):
        found += _halves(part) if len(part) == block_size and steps[part].sum() > most else [part]
    return [clients[np.sort(part)] for part in found]


def _halves(part: np.ndarray) -> list[np.ndarray]:
    """Both halves, or one if the other is empty."""
    return [half for half in np.array_split(part, 2) if len(half)]
