"""Low-rank adapters of a frozen tower's attention, for many clients at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.clip.text_tower import Affine, Block

Target = Literal["q", "k", "v", "o"]
"""Projections of attention: queries, keys, values, output."""

Adapters = Mapping[Target, tuple[Tensor, Tensor]]
"""For some targets, A (P, layers, R, D) and B (P, layers, D, R): for prompt p, W becomes W + B_p A_p in each layer."""


@dataclass(frozen=True)
class Adapted(Affine):
    """A linear map with a separate low-rank part for each of P prompts."""

    down: Tensor  # (P, R, D)
    up: Tensor  # (P, O, R)

    def linear(self, x: Tensor) -> Tensor:
        """Map inputs (P or 1, N, D) to outputs (P, N, O)."""
        return super().linear(x) + x @ self.down.mT @ self.up.mT

    def rows(self, start: int, stop: int | None = None) -> Adapted:
        """Restrict the map to some output coordinates."""
        plain = super().rows(start, stop)
        return Adapted(plain.weight, plain.bias, self.down, self.up[:, start:stop])


def adapt(blocks: Sequence[Block], adapters: Adapters) -> tuple[Block, ...]:
    """Add adapters to the attention of a tower's blocks.

    The output projection includes the layer scale, so a block with one is adapted behind the scale.
    """
    return tuple(
        replace(
            block,
            qkv=_adapted(block.qkv, [adapters.get(target) for target in ("q", "k", "v")], layer),
            out=_adapted(block.out, [adapters.get("o")], layer),
        )
        for layer, block in enumerate(blocks)
    )


def _adapted(affine: Affine, parts: Sequence[tuple[Tensor, Tensor] | None], layer: int) -> Affine:
    """Adapt equal parts of the output coordinates, each by its low-rank part; None: not adapted."""
    width, dtype = len(affine.weight) // len(parts), affine.weight.dtype
    present = [(place, part) for place, part in enumerate(parts) if part is not None]
    if not present:
        return affine
    down = torch.cat([a[:, layer] for _, (a, _) in present], dim=1)
    above_below = [(place * width, len(affine.weight) - (place + 1) * width) for place, _ in present]
    up = [F.pad(b[:, layer], (0, 0, *rows)) for rows, (_, (_, b)) in zip(above_below, present, strict=True)]
    return Adapted(affine.weight, affine.bias, down.to(dtype), torch.cat(up, dim=2).to(dtype))
