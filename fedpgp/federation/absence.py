"""Clients that are lost or slow in a round, and how the rows of a run name what happened to a client."""

from collections.abc import Sequence

import numpy as np

from fedpgp.config import FederationSettings
from fedpgp.core.seeding import numpy_generator


def lost(federation: FederationSettings, seed: int, round: int, clients: np.ndarray) -> np.ndarray:
    """Which of the clients are lost after local training (K,): each independently with probability `dropout`."""
    draws = [federation.dropout > 0 and numpy_generator(seed, "dropout", round, client).random() < federation.dropout
             for client in clients.tolist()]  # fmt: skip
    return np.array(draws, dtype=bool)


def epochs(federation: FederationSettings, seed: int, round: int, clients: np.ndarray) -> np.ndarray:
    """Local epochs of each client (K,): E = `local_epochs`, or with probability `straggler` one of 1, ..., E - 1."""
    counts = np.full(len(clients), federation.local_epochs)
    for index, client in enumerate(clients.tolist() if federation.straggler else []):
        generator = numpy_generator(seed, "straggler", round, client)
        if generator.random() < federation.straggler:
            counts[index] = generator.integers(1, federation.local_epochs)
    return counts


def joined(*events: Sequence[str | None]) -> tuple[str | None, ...]:
    """The events of each client, one after the other: `attack: sign_flip; lost`; None: nothing happened."""
    return tuple("; ".join(filter(None, own)) or None for own in zip(*events, strict=True))
