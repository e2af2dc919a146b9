"""Schedules of the clients' learning rate: functions of the round and of the local step, with nothing carried along."""

import numpy as np

from fedpgp.config import FederationSettings


def factors(federation: FederationSettings, round: int, steps: np.ndarray) -> float | np.ndarray:
    """Factor on the learning rate in a round (1, 2, ...): a number, or of each local step of each client (S, K).

    `steps` (K,) are the clients' numbers of local steps; step s of S (0, 1, ...) lies at round - 1 + s / S.
    """
    if federation.lr_schedule_per == "round":
        return float(_factor(federation, np.array(round - 1.0), 1.0))
    within = np.arange(steps.max(initial=0))[:, None] / np.maximum(steps, 1)
    return _factor(federation, round - 1 + np.minimum(within, 1.0), 1 / np.maximum(steps, 1))


def _factor(federation: FederationSettings, time: np.ndarray, unit: float | np.ndarray) -> np.ndarray:
    """The factor at a time in rounds (0: the start), whose steps are `unit` long; 1 for `constant`.

    Warm-up over W rounds: (time + unit) / W, ending at 1. After it the cosine goes from 1 to 0, after the last round.
    """
    warm_up = federation.lr_warmup_rounds
    after: np.ndarray = np.ones_like(time)
    match federation.lr_schedule:
        case "cosine":
            share = np.maximum(time - warm_up, 0) / max(federation.rounds - warm_up, 1)
            after = (1 + np.cos(np.pi * np.minimum(share, 1))) / 2
        case "step":
            after = federation.lr_step_factor ** np.floor(time / federation.lr_step_rounds)
    return after if warm_up == 0 else after * np.minimum((time + unit) / warm_up, 1)
