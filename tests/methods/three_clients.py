"""Three clients with 6, 4 and 9 images: as one batch, and trained as a block or alone."""

from __future__ import annotations

import numpy as np
import torch

from fedpgp.config import FederationSettings
from fedpgp.core.tree import select, stack
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.methods.base import Batch, DiffersByClient, HasDraws, HasServerRule, PreparesRound
from fedpgp.server_rules.base import Received

NAMES = ["cat", "american_bulldog", "dog", "wine_glass", "teapot"]
COUNTS = (6, 4, 9)
ONE_STEP = FederationSettings(local_steps=1, momentum=0, weight_decay=0)  # the noise of DP-FPL needs them


def padded(values):
    return torch.nn.utils.rnn.pad_sequence(list(values.split(COUNTS)), batch_first=True)


def batch(features, labels, draws=None):
    """All images of each client in one step."""
    return Batch(padded(features), padded(labels), padded(torch.ones(len(labels), dtype=torch.bool)), draws=draws or {})


def drawing(method, frozen, clients=range(3)):
    """A function that makes the random numbers of each step, those of a client from its number; None: needs none."""
    if not isinstance(method, HasDraws):
        return None
    generators = [torch.Generator().manual_seed(10 + client) for client in clients]

    def drawn(chosen):
        each = [method.draws(frozen, generators[client]) for client in chosen]
        return {key: torch.stack([one[key] for one in each]) for key in each[0]}

    return drawn


def step(method, frozen, features, labels):
    """All images of each client in the form that the method takes, with its random numbers."""
    drawn = drawing(method, frozen)
    return batch(features[method.image_inputs], labels, drawn(range(len(COUNTS))) if drawn else None)


def distinct_params(method, frozen):
    """Parameters of the three clients, equal if shared and distinct if personal, and what the server sent."""
    init = method.init(frozen, torch.Generator().manual_seed(1))
    params, generator = stack(init, len(COUNTS)), torch.Generator().manual_seed(2)
    for key in sorted(params.keys() - method.shared_keys):
        if params[key].is_floating_point():
            params[key] = params[key] + 0.1 * torch.randn(params[key].shape, generator=generator)
    if isinstance(method, DiffersByClient):
        for client in range(len(COUNTS)):
            noisy = {key: value[client] for key, value in params.items() if key not in method.shared_keys}
            for key, value in method.personal_of(client, noisy).items():
                params[key][client] = value
    shared = select(init, method.shared_keys)
    received = {**shared, **sent_alone(method, shared)}
    return params, received | (method.prepare(received, frozen) if isinstance(method, PreparesRound) else {})


def sent_alone(method, shared):
    """What a rule of the method sends to each of the three clients after a round in which all took part (3, ...)."""
    if not isinstance(method, HasServerRule):
        return {}
    clients, generator = np.arange(len(COUNTS)), torch.Generator().manual_seed(3)
    uploads = stack(shared, len(COUNTS))
    uploads = {key: value + 0.01 * torch.randn(value.shape, generator=generator) for key, value in uploads.items()}
    rule, weights = method.server_rule(ONE_STEP), torch.ones(len(COUNTS), dtype=torch.float64)
    mean = {key: value.mean(0) for key, value in uploads.items()}
    received = Received(clients, weights, mean, uploads, len(COUNTS), generator)
    server, shared = rule.aggregate(rule.init(shared, len(COUNTS)), shared, received)
    return rule.broadcast(server, shared, clients)[1]


def train(method, frozen, features, labels, clients=range(3)):
    """Two epochs in batches of 4, in stored order."""
    params, received = distinct_params(method, frozen)
    counts = np.array([COUNTS[client] for client in clients])
    chosen = torch.cat([torch.arange(sum(COUNTS)).split(COUNTS)[client] for client in clients])
    data = LocalData(features[chosen], labels[chosen], np.cumsum(counts) - counts)
    orders = [[np.arange(start, min(start + 4, n)) for start in range(0, n, 4)] * 2 for n in counts]
    own = {key: value[list(clients)] for key, value in params.items()}
    phases, sgd = [orders] * len(method.phases), Optimizer(0.003, 0.9, 5e-4)
    received = {key: value if key in own else value[list(clients)] for key, value in received.items()}
    draws = drawing(method, frozen, clients)
    alone = received.keys() - own.keys()
    return local_update(method, frozen, own, received, data, phases, sgd, draws=draws, sent=alone)


def learned(params):
    """Copies that have gradients, except whole numbers."""
    return {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in params.items()}


def gradients(loss, params):
    """Those of the parameters that the loss depends on."""
    own = {key: value for key, value in params.items() if value.requires_grad}
    found = torch.autograd.grad(loss.sum(), list(own.values()), allow_unused=True)
    return {key: gradient for key, gradient in zip(own, found, strict=True) if gradient is not None}
