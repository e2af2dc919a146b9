"""A client's local update: stochastic gradient descent on a block of clients as one batch. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.core.tree import ParamTree, select
from fedpgp.methods.base import Batch, Method, Phase

Order = list[np.ndarray]
"""One client's batches in order: each an array of indices into its own rows."""


@dataclass(frozen=True)
class LocalData:
    """The training images of a block's clients, one client after another."""

    features: Tensor  # (N, ...)
    labels: Tensor  # (N,)
    starts: np.ndarray  # (K,) first row of each client


@dataclass(frozen=True)
class Update:
    """What local training gives."""

    params: ParamTree  # (K, ...)
    loss: Tensor  # (K,) mean over the client's steps of the last phase; if it failed, of the phase where it did
    finite: Tensor  # (K,) bool: no loss of the client was infinite or undefined


@dataclass(frozen=True)
class Optimizer:
    """Settings of SGD."""

    lr: float
    momentum: float
    weight_decay: float
    key_lr: Mapping[str, float] = field(default_factory=dict)
    """keys with a learning rate of their own"""

    def within(self, phase: Phase, round: int) -> Optimizer:
        """What holds in a phase of a round (counted from 1): the phase's own settings before these."""
        decay = phase.decay ** (round - 1)
        return Optimizer(
            lr=decay * self.lr,
            momentum=self.momentum if phase.momentum is None else phase.momentum,
            weight_decay=self.weight_decay if phase.weight_decay is None else phase.weight_decay,
            key_lr={key: decay * lr for key, lr in phase.lr.items()},
        )


def batches(
    count: int, views: int, batch_size: int, epochs: int, drop_last: bool, generator: np.random.Generator
) -> Order:
    """A client's batches: each epoch a new order of its `count` images, each image in one of its `views`.

    With `drop_last` a last, smaller batch is left out if the epoch has a full one.
    """
    order: Order = []
    for _ in range(epochs):
        rows = generator.permutation(count)
        if views > 1:
            rows = rows * views + generator.integers(views, size=count)
        stop = count - count % batch_size if drop_last and count > batch_size else count
        order += [rows[start : min(start + batch_size, stop)] for start in range(0, stop, batch_size)]
    return order


def local_update(
    method: Method,
    frozen: ClassSet,
    params: ParamTree,
    received: ParamTree,
    data: LocalData,
    orders: Sequence[Sequence[Order]],
    optimizer: Optimizer,
    round: int = 1,
) -> Update:
    """Train the clients of a block, all at once.

    A client that has run out of batches is frozen whole (no gradient, momentum or weight decay) while others go on;
    so a client in a block ends as it would alone; one whose loss is not finite rests from there on. Optimizers start
    fresh.

    Args:
        params: stacked parameters (K, ...), the received shared part included; not changed.
        received: what the server sent, without the client axis.
        data: the clients' images.
        orders: for each phase of the method, each client's batches.
        optimizer: settings of SGD, where a phase has none of its own.
        round: counted from 1, for learning rates that decay.
    """
    params = {key: value.clone() for key, value in params.items()}
    loss = torch.zeros(len(data.starts), device=data.labels.device)
    finite = torch.ones_like(loss, dtype=torch.bool)
    for phase, order in zip(method.phases, orders, strict=True):
        within = optimizer.within(phase, round)
        going = finite.clone()
        found = _run_phase(method, frozen, params, received, data, order, phase.keys, within, finite)
        loss = torch.where(going, found, loss)
    return Update(params, loss, finite)


def concatenate(updates: Sequence[Update]) -> Update:
    """The updates of a block that was trained in several chunks of clients."""
    if len(updates) == 1:
        return updates[0]
    return Update(
        {key: torch.cat([update.params[key] for update in updates]) for key in updates[0].params},
        torch.cat([update.loss for update in updates]),
        torch.cat([update.finite for update in updates]),
    )


def _run_phase(
    method: Method,
    frozen: ClassSet,
    params: ParamTree,
    received: ParamTree,
    data: LocalData,
    orders: Sequence[Order],
    keys: frozenset[str],
    optimizer: Optimizer,
    finite: Tensor,
) -> Tensor:
    """Train `keys` of `params` in place, and mark in `finite` who fails; the loss (K,)."""
    learned = {key: value.requires_grad_() for key, value in select(params, keys).items()}
    momentum = {key: torch.zeros_like(value) for key, value in learned.items()}
    steps = torch.tensor([len(order) for order in orders], device=data.labels.device)
    total = torch.zeros(len(orders), device=data.labels.device)
    for step in range(int(steps.max())):
        batch = batch_of(data, orders, step)
        loss, _ = method.loss(params, received, frozen, batch)
        active = (steps > step) & finite
        total += torch.where(active, loss.detach(), 0.0)
        finite &= ~active | torch.isfinite(loss)
        active &= finite
        if not active.any():
            continue
        gradients = torch.autograd.grad(loss[active].sum(), list(learned.values()))
        with torch.no_grad():
            for (key, value), gradient in zip(learned.items(), gradients, strict=True):
                lr = optimizer.key_lr.get(key, optimizer.lr)
                _sgd(value, gradient, momentum[key], active, lr, optimizer)
    for value in learned.values():
        value.requires_grad_(False)
    return total / steps


def _sgd(value: Tensor, gradient: Tensor, momentum: Tensor, active: Tensor, lr: float, optimizer: Optimizer) -> None:
    """torch.optim.SGD's step on the active clients' rows, in place."""
    rows = active.view(-1, *[1] * (value.dim() - 1))
    fresh = optimizer.momentum * momentum + gradient + optimizer.weight_decay * value
    momentum.copy_(torch.where(rows, fresh, momentum))
    value.sub_(torch.where(rows, lr * momentum, 0.0))


def batch_of(data: LocalData, orders: Sequence[Order], step: int) -> Batch:
    """The `step`-th batch of each client, padded to the largest; all padding for a client without one."""
    parts = [
        order[step] + start if step < len(order) else None for order, start in zip(orders, data.starts, strict=True)
    ]
    width = max(len(part) for part in parts if part is not None)
    index = np.zeros((len(parts), width), dtype=np.int64)
    mask = np.zeros((len(parts), width), dtype=bool)
    for row, part in enumerate(parts):
        if part is not None:
            index[row, : len(part)] = part
            mask[row, : len(part)] = True
    device = data.labels.device
    chosen = torch.from_numpy(index).to(device)
    return Batch(data.features[chosen], data.labels[chosen], torch.from_numpy(mask).to(device))
