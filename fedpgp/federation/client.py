"""A client's local update: stochastic gradient descent on a block of clients as one batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip.frozen import ClassSet
from fedpgp.errors import ClientError
from fedpgp.methods.base import Batch, Method, Phase
from fedpgp.tree import ParamTree, select

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
    loss: Tensor  # (K,) mean over the client's steps


@dataclass(frozen=True)
class Optimizer:
    """Settings of SGD."""

    lr: float
    momentum: float
    weight_decay: float


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
) -> Update:
    """Train the clients of a block, all at once.

    A client that has run out of batches is frozen whole (no gradient, momentum or weight decay) while others go on;
    so a client in a block ends as it would alone. Optimizers start fresh.

    Args:
        params: stacked parameters (K, ...), the received shared part included; not changed.
        received: what the server sent, without the client axis.
        data: the clients' images.
        orders: for each phase of the method, each client's batches.
        optimizer: settings of SGD.

    Raises:
        ClientError: a loss is not finite; `client` is the place in the block, `round` 0.
    """
    params = {key: value.clone() for key, value in params.items()}
    losses = torch.zeros(len(data.starts), device=data.labels.device)
    for phase, order in zip(method.phases, orders, strict=True):
        losses = _run_phase(method, frozen, params, received, data, order, phase, optimizer)
    return Update(params, losses)


def _run_phase(
    method: Method,
    frozen: ClassSet,
    params: ParamTree,
    received: ParamTree,
    data: LocalData,
    orders: Sequence[Order],
    phase: Phase,
    optimizer: Optimizer,
) -> Tensor:
    """Train `phase.keys` of `params` in place; the mean loss (K,)."""
    learned = {key: value.requires_grad_() for key, value in select(params, phase.keys).items()}
    momentum = {key: torch.zeros_like(value) for key, value in learned.items()}
    steps = torch.tensor([len(order) for order in orders], device=data.labels.device)
    total = torch.zeros(len(orders), device=data.labels.device)
    for step in range(int(steps.max())):
        batch = _batch(data, orders, step)
        loss, _ = method.loss(params, received, frozen, batch)
        active = steps > step
        _check_finite(loss, active)
        gradients = torch.autograd.grad(loss[active].sum(), list(learned.values()))
        with torch.no_grad():
            total += torch.where(active, loss, 0.0)
            for (key, value), gradient in zip(learned.items(), gradients, strict=True):
                lr = phase.lr.get(key, optimizer.lr)
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


def _batch(data: LocalData, orders: Sequence[Order], step: int) -> Batch:
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


def _check_finite(loss: Tensor, active: Tensor) -> None:
    bad = (~torch.isfinite(loss) & active).nonzero().flatten().tolist()
    if bad:
        raise ClientError("local training", 0, bad[0], f"loss is {loss[bad[0]].item()}; lower the learning rate")
