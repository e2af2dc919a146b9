"""What becomes of a client whose training went wrong: decided in the actor, before its update meets any other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedpgp.config import FederationSettings
from fedpgp.core.tree import ParamTree, select
from fedpgp.federation.client import Update


@dataclass(frozen=True)
class Admission:
    """Who takes part in the average, and with what."""

    shared: ParamTree  # (K, ...) clipped where that is the policy
    admitted: Tensor  # (K,) bool
    events: tuple[str | None, ...]  # (K,) what was done to a client, in words


@dataclass(frozen=True)
class UpdateRejected(Exception):
    """`federation.policy` is `fail` and a client went wrong."""

    place: int
    """in the block"""
    what: str


def admit(update: Update, received: ParamTree, federation: FederationSettings) -> Admission:
    """Judge the clients of a block.

    A client goes wrong if a loss or a parameter of it is not finite, or if its update of the shared parameters is
    longer than `max_update_norm` (Euclidean norm over all shared keys together). With policy `exclude` it is left
    out of the average and keeps the personal parameters that it had; with `clip` a long update is shortened to the
    norm (one that is not finite cannot be, and is left out).

    Raises:
        UpdateRejected: policy `fail`, and a client went wrong.
    """
    shared = select(update.params, received)
    deltas = {key: value - received[key] for key, value in shared.items()}
    finite = all_finite(update)
    norm = _norm(deltas) if deltas else torch.zeros_like(update.loss)
    limit = federation.max_update_norm
    long = finite & (norm > limit) if limit is not None else torch.zeros_like(finite)
    events: list[str | None] = [None] * len(finite)
    for place in (~finite).nonzero().flatten().tolist():
        events[place] = fault(update, place)
    for place in long.nonzero().flatten().tolist():
        events[place] = f"update norm {norm[place].item():.4g} above max_update_norm {limit:g}"
    if federation.policy == "fail":
        for place, event in enumerate(events):
            if event:
                raise UpdateRejected(place, event)
    if federation.policy == "clip" and limit is not None:
        scale = torch.where(long, limit / norm.clamp(min=1e-30), 1.0)
        shared = {key: _clipped(shared[key], received[key], delta, long, scale) for key, delta in deltas.items()}
        long = torch.zeros_like(long)
    admitted = finite & ~long
    done = ["clipped" if in_sum else "excluded" for in_sum in admitted.tolist()]
    told = (f"{what}: {event}" if event else None for what, event in zip(done, events, strict=True))
    return Admission(shared, admitted, tuple(told))


def all_finite(update: Update) -> Tensor:
    """Whose losses and parameters are all finite (K,)."""
    params = (value.isfinite().flatten(1).all(1) for value in update.params.values())
    return torch.stack([update.finite, *params]).all(0)


def fault(update: Update, place: int) -> str:
    """What is not finite of the client at a place of the block, in words."""
    return "a parameter is not finite" if update.finite[place] else f"loss is {update.loss[place].item()}"


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _clipped(value: Tensor, received: Tensor, delta: Tensor, long: Tensor, scale: Tensor) -> Tensor:
    return torch.where(_rows(long, delta), received + delta * _rows(scale, delta), value)


def _norm(tree: ParamTree) -> Tensor:
    return torch.stack([value.double().flatten(1).square().sum(1) for value in tree.values()]).sum(0).sqrt()
