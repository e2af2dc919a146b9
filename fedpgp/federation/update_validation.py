"""Validate the updates of a block before aggregation, in the worker, by `federation.policy`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.config import FederationSettings
from fedpgp.core.tree import ParamTree, choose, select
from fedpgp.federation.client import Update


@dataclass(frozen=True)
class ValidatedUpdate:
    """The clients that take part in the average, and their shared parameters."""

    shared: ParamTree  # (K, ...), clipped with policy `clip`
    accepted: Tensor  # (K,) bool
    events: tuple[str | None, ...]  # (K,) what went wrong and what was done; None: nothing


@dataclass(frozen=True)
class UpdateRejected(Exception):
    """`federation.policy` is `fail` and the update of a client is invalid."""

    index: int
    """of the client in its block"""
    reason: str


def validate(update: Update, received: ParamTree, federation: FederationSettings) -> ValidatedUpdate:
    """Check the clients of a block.

    An update is invalid if a loss or a parameter is not finite, or if the change of the shared parameters is longer
    than `max_update_norm` (Euclidean norm over all shared keys together). With policy `exclude` the client is left out
    of the average and keeps its previous personal parameters; with `clip` a long update is scaled to the norm (one
    that is not finite is excluded).

    Raises:
        UpdateRejected: policy `fail`, and an update is invalid.
    """
    shared = select(update.params, received)
    deltas = {key: value - received[key] for key, value in shared.items()}
    finite = all_finite(update)
    norm = _norm(deltas) if deltas else torch.zeros_like(update.loss)
    limit = federation.max_update_norm
    long = finite & (norm > limit) if limit is not None else torch.zeros_like(finite)
    reasons: list[str | None] = [None] * len(finite)
    for index in (~finite).nonzero().flatten().tolist():
        reasons[index] = non_finite(update, index)
    for index in long.nonzero().flatten().tolist():
        reasons[index] = f"update norm {norm[index].item():.4g} above max_update_norm {limit:g}"
    if federation.policy == "fail":
        for index, reason in enumerate(reasons):
            if reason:
                raise UpdateRejected(index, reason)
    if federation.policy == "clip" and limit is not None:
        scale = torch.where(long, limit / norm.clamp(min=1e-30), 1.0)
        clipped = {
            key: received[key] + delta * scale.view(-1, *[1] * (delta.dim() - 1)) for key, delta in deltas.items()
        }
        shared = choose(long, clipped, shared)
        long = torch.zeros_like(long)
    accepted = finite & ~long
    actions = ["clipped" if in_sum else "excluded" for in_sum in accepted.tolist()]
    events = (f"{action}: {reason}" if reason else None for action, reason in zip(actions, reasons, strict=True))
    return ValidatedUpdate(shared, accepted, tuple(events))


def all_finite(update: Update) -> Tensor:
    """Whether all losses and parameters of each client are finite (K,)."""
    params = (value.isfinite().flatten(1).all(1) for value in update.params.values())
    return torch.stack([update.finite, *params]).all(0)


def non_finite(update: Update, index: int) -> str:
    """Describe which number of the client at an index of the block is not finite."""
    return "a parameter is not finite" if update.finite[index] else f"loss is {update.loss[index].item()}"


def _norm(tree: ParamTree) -> Tensor:
    return torch.stack([value.double().flatten(1).square().sum(1) for value in tree.values()]).sum(0).sqrt()
