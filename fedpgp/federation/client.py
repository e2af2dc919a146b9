"""Local training: stochastic gradient descent on a block of clients as one batch, and validation of their updates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import FederationSettings
from fedpgp.core.errors import ClientError, ConfigError
from fedpgp.core.tree import ParamTree, choose, rows, select
from fedpgp.federation.messages import Call
from fedpgp.methods.base import Batch, Method, Phase

Order = list[np.ndarray]  # one client's batches in order, each an array of indices into its own rows
Draws = Callable[[np.ndarray], ParamTree]  # makes the random numbers of a step of these clients of the block (K, ...)
RESERVED_PARTS = frozenset({"loss", "train"})  # not for parts of a loss: rows of a run use them for the loss itself


@dataclass(frozen=True)
class LocalData:
    """The training images of a block of clients, client by client."""

    features: Tensor  # (N, ...)
    labels: Tensor  # (N,)
    starts: np.ndarray  # (K,) first row of each client
    own: Tensor | None = None  # (K, C) see `Batch`

    def reordered(self, clients: np.ndarray) -> LocalData:
        """The same images, with the clients in another order."""
        own = None if self.own is None else self.own[torch.as_tensor(clients, device=self.own.device)]
        return replace(self, starts=self.starts[clients], own=own)


@dataclass(frozen=True)
class Update:
    """The result of local training, on the device that computed it."""

    params: ParamTree  # (K, ...)
    loss: Tensor  # (K,) mean over the steps of the client's last phase, or of the phase in which it failed
    finite: Tensor  # (K,) bool: no loss of the client was infinite or undefined
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # (K,) as `loss`, of each named part of it
    momentum: ParamTree = field(default_factory=dict)  # (K, ...) of optimizers that are kept; empty: of none

    @classmethod
    def concatenate(cls, updates: Sequence[Update]) -> Update:
        """The update of a block that was trained in several chunks of clients."""
        if len(updates) == 1:
            return updates[0]
        return cls(
            {key: torch.cat([update.params[key] for update in updates]) for key in updates[0].params},
            torch.cat([update.loss for update in updates]),
            torch.cat([update.finite for update in updates]),
            {name: torch.cat([update.parts[name] for update in updates]) for name in updates[0].parts},
            {key: torch.cat([update.momentum[key] for update in updates]) for key in updates[0].momentum},
        )


@dataclass(frozen=True)
class ValidatedUpdate:
    """The clients that take part in the average, and their shared parameters."""

    shared: ParamTree  # (K, ...), clipped with policy `clip`
    accepted: Tensor  # (K,) bool
    events: tuple[str | None, ...]  # (K,) what went wrong and what was done; None: nothing


@dataclass(frozen=True)
class Optimizer:
    """Settings of SGD."""

    lr: float
    momentum: float
    weight_decay: float
    key_lr: Mapping[str, float] = field(default_factory=dict)  # learning rates of single keys

    def of(self, key: str) -> float:
        """The learning rate of a key."""
        return self.key_lr.get(key, self.lr)

    def within(self, phase: Phase, round: int) -> Optimizer:
        """The settings in a phase of a round (counted from 1): those that the phase sets override these."""
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
    """Draw a client's batches: each epoch a new order of its `count` images, each in one of its `views`.

    `drop_last` drops a smaller last batch if the epoch has a full one.
    """
    order: Order = []
    for _ in range(epochs):
        rows = generator.permutation(count)
        if views > 1:
            rows = rows * views + generator.integers(views, size=count)
        stop = count - count % batch_size if drop_last and count > batch_size else count
        order += [rows[start : min(start + batch_size, stop)] for start in range(0, stop, batch_size)]
    return order


def expected_steps(images: np.ndarray, federation: FederationSettings) -> np.ndarray:
    """The local steps of clients with so many images in a round, if they are no stragglers (K,)."""
    if federation.local_steps is not None:
        return np.full(len(images), federation.local_steps)
    size = federation.batch_size
    epoch = np.maximum(1, images // size) if federation.drop_last else -(-images // size)
    return epoch * federation.local_epochs


def local_update(
    method: Method,
    frozen: ClassSet,
    params: ParamTree,
    received: ParamTree,
    data: LocalData,
    orders: Sequence[Sequence[Order]],
    optimizer: Optimizer,
    round: int = 1,
    factors: Sequence[float | np.ndarray] | None = None,
    correction: ParamTree | None = None,
    draws: Draws | None = None,
    kept: Mapping[str, Tensor] = MappingProxyType({}),
    sent: Collection[str] = (),
) -> Update:
    """Train the clients of a block together, each as it would be trained alone.

    A client leaves the batch after its last step, so that a block costs the steps of its clients. For this, each phase
    has them in order of their steps, the longest first. A client whose loss is not finite stays in the batch, but
    changes no more (no gradient, momentum or weight decay). No step waits for the device: nothing is read from it, and
    the only copies to it, of `draws`, are asynchronous. (Some methods wait in their loss, as their docstrings say.)
    Raises `ConfigError` if the method gives a part of its loss a reserved name.

    Args:
        params: stacked parameters (K, ...), the received shared ones included; not changed.
        received: what the server sent, see `Method.loss`.
        orders: for each phase of the method, each client's batches.
        optimizer: settings of SGD, which those of a phase override.
        round: counted from 1, for learning rates that decay.
        factors: for each phase, the factor on its learning rates, see `learning_rates.factors`; None: 1.
        correction: added to the gradients of its keys in every step (K, ...); None: nothing.
        draws: called once per step; None: the method uses no random numbers.
        kept: momentum at the start (K, ...), as `initial_momentum` names it; not changed. Empty: 0, and not returned.
        sent: keys of `received` that have the client axis.
    """
    device = data.labels.device
    finite = torch.ones(len(data.starts), dtype=torch.bool, device=device)
    means = {"loss": torch.zeros(len(data.starts), device=device)}
    ends: ParamTree = {}
    for index, (phase, phase_orders) in enumerate(zip(method.phases, orders, strict=True)):
        lengths = np.array([len(order) for order in phase_orders])
        longest = np.argsort(-lengths, kind="stable")  # of the clients, in this order until the end of the phase
        place = torch.as_tensor(longest, device=device)
        back, steps = place.argsort(), torch.as_tensor(lengths, device=device)
        factor = 1.0 if factors is None else factors[index]
        by_step = torch.as_tensor(factor, dtype=torch.float32, device=device)
        settings, trained, sums = optimizer.within(phase, round), finite, dict[str, Tensor]()
        params, finite = rows(params, place), finite[place]
        alone, extra = rows(select(received, sent), place), rows(select(correction or {}, phase.keys), place)
        momentum = {
            key: kept[_momentum_key(index, key)][place] if kept else torch.zeros_like(value)
            for key, value in select(params, phase.keys).items()
        }
        scheduled = schedule(data.reordered(longest), [phase_orders[client] for client in longest])
        for count, stretch in groupby(enumerate(scheduled), key=lambda item: len(item[1].labels)):
            now, velocity, change, own = (_first(tree, count) for tree in (params, momentum, extra, alone))
            learned = {key: value.requires_grad_() for key, value in select(now, phase.keys).items()}
            active = finite[:count]
            for step, batch in stretch:
                if draws is not None:
                    batch = replace(batch, draws=draws(longest[:count]))
                loss, parts = method.loss(now, received | own, frozen, batch)
                if reserved := RESERVED_PARTS & parts.keys():
                    raise ConfigError(f"method {method.name}: rename the part {min(reserved)!r} of its loss: reserved")
                for name, value in {"loss": loss, **parts}.items():
                    counted = torch.where(active, value.detach(), 0.0)
                    sums.setdefault(name, counted.new_zeros(len(longest)))[:count] += counted
                active &= torch.isfinite(loss)
                gradients = torch.autograd.grad(torch.where(active, loss, 0.0).sum(), list(learned.values()))
                scale = factor if isinstance(factor, float) else by_step[step, place[:count]]
                with torch.no_grad():
                    for (key, value), gradient in zip(learned.items(), gradients, strict=True):
                        if key in change:
                            gradient = gradient + change[key]
                        _sgd(value, gradient, velocity[key], active, settings.of(key) * scale, settings)
        params, finite = rows(params, back), finite[back]
        if kept:
            ends |= {_momentum_key(index, key): value[back] for key, value in momentum.items()}
        means |= {
            name: torch.where(trained, total[back] / steps, means.get(name, torch.nan)) for name, total in sums.items()
        }
    return Update(params, means.pop("loss"), finite, means, ends)


def _first(tree: ParamTree, count: int) -> ParamTree:
    """The first clients of stacked entries: leaves of the graph that share memory with `tree`."""
    return {key: value[:count].detach() for key, value in tree.items()}


def initial_momentum(method: Method, params: ParamTree) -> ParamTree:
    """The momentum of one client before its first update: 0 for each parameter of each phase."""
    return {
        _momentum_key(index, key): torch.zeros_like(value)
        for index, phase in enumerate(method.phases)
        for key, value in select(params, phase.keys).items()
    }


def _momentum_key(phase: int, key: str) -> str:
    return f"momentum.{phase}.{key}"


def _sgd(
    value: Tensor, gradient: Tensor, momentum: Tensor, active: Tensor, lr: float | Tensor, optimizer: Optimizer
) -> None:
    """Take a step of torch.optim.SGD on the rows of active clients, in place; `lr` is a number or (K,)."""
    rows = active.view(-1, *[1] * (value.dim() - 1))
    rate = lr.view_as(rows) if isinstance(lr, Tensor) else lr
    fresh = optimizer.momentum * momentum + gradient + optimizer.weight_decay * value
    momentum.copy_(torch.where(rows, fresh, momentum))
    value.sub_(torch.where(rows, rate * momentum, 0.0))


def travel(steps: np.ndarray, factors: float | np.ndarray, momentum: float) -> np.ndarray:
    """How far SGD with learning rate 1 and a constant gradient of 1 goes in each client's `steps` (K,).

    `factors` as in `learning_rates.factors`. Without momentum and schedule it is the number of steps.
    """
    number = np.arange(1, steps.max(initial=0) + 1)[:, None]
    velocity = (1 - momentum**number) / (1 - momentum)
    done = np.where(number <= steps, velocity * factors, 0.0)
    total: np.ndarray = done.sum(0)
    return total


def schedule(data: LocalData, orders: Sequence[Order]) -> Iterator[Batch]:
    """The batches of all steps: one of each client that has one, padded to the largest.

    The clients must be in order of their number of steps, the longest first: those of a batch are the first ones. All
    indices are copied to the device before the first step, in one piece.
    """
    steps = [_padded(orders, data.starts, step) for step in range(max(len(order) for order in orders))]
    shapes = [index.shape for index, _ in steps]
    indices, masks = (
        torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(data.labels.device)
        for arrays in zip(*steps, strict=True)
    )
    sizes = [clients * images for clients, images in shapes]
    for shape, index, mask in zip(shapes, indices.split(sizes), masks.split(sizes), strict=True):
        chosen = index.view(shape)
        own = None if data.own is None else data.own[: len(chosen)]
        yield Batch(data.features[chosen], data.labels[chosen], mask.view(shape), own)


def _padded(orders: Sequence[Order], starts: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images of a step (K, B) of the clients that have it, and which of them are real."""
    parts = [order[step] + start for order, start in zip(orders, starts, strict=True) if step < len(order)]
    counts = np.array([len(part) for part in parts])
    mask = np.arange(counts.max()) < counts[:, None]
    index = np.zeros(mask.shape, dtype=np.int64)
    index[mask] = np.concatenate(parts)
    return index, mask


def validate(
    update: Update, received: ParamTree, federation: FederationSettings, call: Call, stage: str = "local training"
) -> ValidatedUpdate:
    """Validate the updates of the clients of a call by `federation.policy`.

    An update is invalid if a loss or a parameter is not finite, or if the change of the `received` parameters is longer
    than `max_update_norm` (Euclidean norm over all keys together). Policy `fail` raises `ClientError`; `exclude` does
    not accept the client; `clip` scales a long update to the norm, and excludes one that is not finite.
    """
    shared = select(update.params, received)
    deltas = {key: value - received[key] for key, value in shared.items()}
    squares = [delta.double().flatten(1).square().sum(1) for delta in deltas.values()]
    norm = torch.stack(squares).sum(0).sqrt() if squares else torch.zeros_like(update.loss)
    finite_params = (value.isfinite().flatten(1).all(1) for value in update.params.values())
    finite = torch.stack([update.finite, *finite_params]).all(0)
    limit = federation.max_update_norm
    long = finite & (norm > limit) if limit is not None else torch.zeros_like(finite)
    reasons: list[str | None] = [None] * len(finite)
    for index in (~finite).nonzero().flatten().tolist():
        loss = update.loss[index].item()
        reasons[index] = "a parameter is not finite" if update.finite[index] else f"loss is {loss}"
    for index in long.nonzero().flatten().tolist():
        reasons[index] = f"update norm {norm[index].item():.4g} above max_update_norm {limit:g}"
    for client, reason in zip(call.clients, reasons, strict=True):
        if reason and federation.policy == "fail":
            advice = "give federation.policy=exclude or clip, or " if "max_update_norm" in reason else ""
            raise ClientError(stage, call.round, int(client), f"{reason}; {advice}lower the learning rate")
    if federation.policy == "clip" and limit is not None:
        scale = torch.where(long, limit / norm.clamp(min=1e-30), 1.0)
        clipped = {
            key: received[key] + delta * scale.to(delta.dtype).view(-1, *[1] * (delta.dim() - 1))
            for key, delta in deltas.items()
        }
        shared = choose(long, clipped, shared)
        long = torch.zeros_like(long)
    accepted = finite & ~long
    actions = ["clipped" if in_sum else "excluded" for in_sum in accepted.tolist()]
    events = (f"{action}: {reason}" if reason else None for action, reason in zip(actions, reasons, strict=True))
    return ValidatedUpdate(shared, accepted, tuple(events))
