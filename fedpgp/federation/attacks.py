"""Attacks: who attacks, and the false update that an attacker sends, or the false labels that it trains with."""

from collections.abc import Mapping

import numpy as np
import torch

from fedpgp.config import AttackSettings
from fedpgp.core.seeding import numpy_generator, share_of
from fedpgp.core.tree import ParamTree, num_values


def attackers(settings: AttackSettings | None, clients: np.ndarray, seed: int) -> np.ndarray:
    """The attackers among the clients that train, sorted, the same in all rounds; as many as `count_of_share` says."""
    if settings is None:
        return clients[:0]
    return share_of(clients, settings.fraction, numpy_generator(seed, "attackers"))


def false_update(settings: AttackSettings, update: ParamTree, generator: np.random.Generator) -> ParamTree:
    """What an attacker sends instead of its update d = y - x of all shared parameters, with n values together.

    * `sign_flip`: -scale d.
    * `gaussian`: independent draws from N(0, s^2), with s = scale ||d|| / sqrt(n).
    * `same_value`: s in every place, with the same s.
    * `label_flip`: d, which was learned from false labels.

    All are scale times as long as d (gaussian: in the mean of squares), and 0 for d = 0. The first three are those of
    Li et al. (RSA, AAAI 2019, section 6), who flip with scale 4, but draw from N(0, 30) and send 100, whatever the
    update: far more than a prompt's values of about 0.02, so any limit on the norm would find them.

    Args:
        update: parameters of one client, without the client axis.
    """
    if settings.kind == "label_flip":
        return update
    if settings.kind == "sign_flip":
        return {key: -settings.scale * value for key, value in update.items()}
    squared = sum(value.double().square().sum().item() for value in update.values())
    s = settings.scale * (squared / num_values(update)) ** 0.5
    if settings.kind == "same_value":
        return {key: torch.full_like(value, s) for key, value in update.items()}
    noise = {key: torch.from_numpy(s * generator.standard_normal(tuple(value.shape))) for key, value in update.items()}
    return {key: value.to(update[key]) for key, value in noise.items()}


def attacked(
    settings: AttackSettings, shared: ParamTree, start: ParamTree, generators: Mapping[int, np.random.Generator]
) -> ParamTree:
    """The shared parameters of a block (K, ...), those of its attackers replaced.

    Args:
        shared: after local training (K, ...).
        start: before it (K, ...).
        generators: of each attacker, by its place in the block.
    """
    shared = {key: value.clone() for key, value in shared.items()}
    for index, generator in generators.items():
        update = {key: value[index] - start[key][index] for key, value in shared.items()}
        for key, value in false_update(settings, update, generator).items():
            shared[key][index] = start[key][index] + value
    return shared


def train_labels(settings: AttackSettings, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The labels an attacker trains with: for `label_flip` C - 1 - y (Fang et al., USENIX Security 2020), else y."""
    return num_classes - 1 - labels if settings.kind == "label_flip" else labels
