"""Who trains in a round, and how they are cut into blocks: functions of (seed, round), of nothing else."""

from __future__ import annotations

import numpy as np

from fedpgp.core.seeding import numpy_generator


def cohort(seed: int, round: int, clients: int, participation: float, everyone_first: bool) -> np.ndarray:
    """The clients that train in `round` (1, 2, ...), sorted.

    `max(1, floor(participation * clients))` of them, drawn without replacement; all of them for
    `participation` 1, and in round 1 with `everyone_first` (as in the authors' code).
    """
    count = max(1, int(participation * clients))
    if count == clients or (everyone_first and round == 1):
        return np.arange(clients)
    return np.sort(numpy_generator(seed, "cohort", round).choice(clients, count, replace=False))


def blocks(clients: np.ndarray, block_size: int) -> list[np.ndarray]:
    """The sorted clients in blocks of `block_size`. Never depends on how many actors there are."""
    return [clients[start : start + block_size] for start in range(0, len(clients), block_size)]
