"""The prompt encoder: text features of learned prompts, with shared work done once.

Plain CLIP encodes C prompts of 77 tokens. The tower is causal and pooled at end-of-text, so the following is exact:
tokens after end-of-text are not computed; common prefixes of prompts are encoded once (see `Layout`); the first layer's
projections of fixed tokens are constants; the last layer runs at the end-of-text tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.towers import Affine, Block, TextTower, merge_heads, split_heads

Slot = int
"""One position of a prompt: a token id (>= 0), or learned context token j as `-1 - j`."""

TREE_NODES = 256
"""Approximate maximum number of nodes per tree. Attention costs grow with its square, and every tree repeats the shared
context; with this value both are below a tenth of the work at the sizes of CLIP's text towers."""

FILLER: Slot = 0
"""Any token; the nodes that pad a tree are not read."""

MULTIPLE = 4
"""The number of nodes is padded to a multiple of this. Two prompts then have a multiple of 8 tokens, and the rows that
`Affine.transposed` writes are aligned for vector registers, which saves more than the padding costs."""

Target = Literal["q", "k", "v", "o"]
"""Projections of attention: queries, keys, values, output."""

Adapters = Mapping[Target, tuple[Tensor, Tensor]]
"""For some targets, A (P, layers, R, D) and B (P, layers, D, R): for prompt p, W becomes W + B_p A_p in each layer."""


class PromptEncoder:
    """Encodes stacks of contexts for one layout of class names. Equal contexts give equal features.

    Args:
        layouts: the classes, in order, in one or more trees.
        bounded: keep the activations of one tree at a time (recomputed in the backward pass), to limit memory.
    """

    def __init__(self, tower: TextTower, layouts: Sequence[Layout], bounded: bool = False) -> None:
        self.tower = tower
        self.trees = tuple(_Tree(tower, layout) for layout in layouts)
        self.bounded = bounded and len(layouts) > 1

    def encode(self, ctx: Tensor, deep: Tensor | None = None, adapters: Adapters | None = None) -> Tensor:
        """Compute text features, not normalized.

        Args:
            ctx: learned contexts (P, L, D), or class-specific (P, C, L, D). P is any stack of prompts: clients,
                prompts per client, images, global and personal ones.
            deep: inputs of layers 1, 2, ... (P, J - 1, ..., L, D), which replace the context tokens' outputs of the
                layer before; None: nothing is replaced.
            adapters: low-rank parts of the tower's attention for each of the P prompts, which then share one context
                (1, L, D). None: the unchanged tower.

        Returns:
            Features (P, C, E) in float32.
        """
        dtype = self.tower.tokens.dtype
        ctx = ctx.flatten(1, -2).to(dtype)
        layers = [ctx] if deep is None else [ctx, *deep.flatten(2, -2).to(dtype).unbind(1)]
        blocks = self.tower.blocks if adapters is None else adapt(self.tower.blocks, adapters)
        if self.bounded:
            parts = [checkpoint(tree.encode, layers, blocks, use_reentrant=False) for tree in self.trees]
        else:
            parts = [tree.encode(layers, blocks) for tree in self.trees]
        return torch.cat(parts, dim=1).float()


class _Tree:
    """The tokens of some classes' prompts. Shapes: N tokens of which the first F are learned, C classes."""

    def __init__(self, tower: TextTower, layout: Layout) -> None:
        device = tower.tokens.device
        self.tower = tower
        self.learned, self.ends = layout.learned.to(device), layout.ends.to(device)
        positions = tower.positions[layout.positions.to(device)]
        self.learned_positions = positions[: len(layout.learned)]
        self.fixed = tower.tokens[layout.fixed.to(device)] + positions[len(layout.learned) :]
        mask = torch.zeros(layout.sees.shape, dtype=tower.tokens.dtype).masked_fill_(~layout.sees, float("-inf"))
        self.mask = mask.to(device)
        # The queries, keys and values of fixed tokens in the first layer are constant.
        first = tower.blocks[0]
        self.fixed_qkv = first.qkv.linear(first.norm_1.norm(self.fixed, tower.eps))

    def encode(self, layers: Sequence[Tensor], blocks: Sequence[Block]) -> Tensor:
        """Compute features (P, C, E) from the learned tokens (P, L, D) of the first layers."""
        tower = self.tower
        x = self._with(layers[0], self.fixed, self.learned_positions)
        for depth, block in enumerate(blocks[:-1]):
            x = self._renewed(x, layers, depth)
            q, k, v = self._project(block, x, depth).chunk(3, -1)
            x = block.finish(x, self._attend(q, k, v, self.mask), tower.eps, tower.activation)
        last = blocks[-1]
        normed = last.norm_1.norm(self._renewed(x, layers, len(blocks) - 1), tower.eps)
        q = last.qkv.rows(0, tower.width).linear(normed.index_select(1, self.ends))
        k, v = last.qkv.rows(tower.width).linear(normed).chunk(2, -1)
        mixed = self._attend(q, k, v, self.mask[self.ends])
        x = last.finish(x.index_select(1, self.ends), mixed, tower.eps, tower.activation)
        return tower.projection.linear(tower.norm.norm(x, tower.eps))

    def _with(self, ctx: Tensor, fixed: Tensor, positions: Tensor | float = 0.0) -> Tensor:
        """Join the rows of the learned tokens, (P, F, .) from (P, L, .), and those of the fixed ones."""
        learned = ctx.index_select(1, self.learned) + positions
        return torch.cat([learned, fixed.expand(len(ctx), -1, -1)], dim=1)

    def _renewed(self, x: Tensor, layers: Sequence[Tensor], depth: int) -> Tensor:
        """Replace the learned tokens of the input of layer `depth`, if the layer has its own."""
        return self._with(layers[depth], x[:, len(self.learned) :]) if 0 < depth < len(layers) else x

    def _project(self, block: Block, x: Tensor, depth: int) -> Tensor:
        """Project to queries, keys and values (P, N, 3 D)."""
        if depth > 0 or block.qkv is not self.tower.blocks[0].qkv:  # adapters change what is projected
            return block.qkv.linear(block.norm_1.norm(x, self.tower.eps))
        learned = block.qkv.linear(block.norm_1.norm(x[:, : len(self.learned)], self.tower.eps))
        return torch.cat([learned, self.fixed_qkv.expand(len(x), -1, -1)], dim=1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attend with queries (P, Q, D) to keys and values (P, N, D) under a mask (Q, N); returns (P, Q, D)."""
        attend = fused_attention if q.is_cuda else attention
        q, k, v = (split_heads(part, self.tower.heads) for part in (q, k, v))
        return merge_heads(attend(q, k, v, mask))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend with queries (P, H, Q, d) to keys and values (P, H, N, d) under a mask (Q, N): faster on a CPU."""
    heads = q.shape[1]
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.baddbmm(mask, q, k.mT, alpha=float(q.shape[-1] ** -0.5))
    mixed: Tensor = torch.softmax(scores, dim=-1) @ v
    return mixed.view(-1, heads, *mixed.shape[1:])


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same in one kernel of a GPU, which keeps no weights (P, H, Q, N) for the backward pass.

    Flash attention takes no mask, and the tree needs one, so torch chooses its memory-efficient kernel.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@dataclass(frozen=True)
class Layout:
    """The prompts of C classes as a tree of N tokens.

    The tower is causal, so a token's state depends on the tokens before it only, and prompts share the nodes of common
    prefixes (start-of-text, context, and first words such as in "cougar body" and "cougar face"). It is pooled at
    end-of-text, so prompts end there. The F learned tokens come first, then the fixed ones, the last of which may be
    padding that attends to itself only.
    """

    learned: Tensor  # (F,) index of the context token
    fixed: Tensor  # (N - F,) token ids
    positions: Tensor  # (N,) position in the prompt: depth in the tree
    sees: Tensor  # (N, N) bool: a token attends to itself and to those above it
    ends: Tensor  # (C,) node of each class's end-of-text token


def arrange(prompts: Sequence[Sequence[Slot]], class_chunk: int | None = None) -> tuple[Layout, ...]:
    """Lay out prompts as trees of at most `class_chunk` classes or, without it, of about `TREE_NODES` nodes."""
    trees = ceil(len(_grow(prompts)[0]) / TREE_NODES)
    size = class_chunk or ceil(len(prompts) / trees)
    return tuple(_lay_out(prompts[start : start + size]) for start in range(0, len(prompts), size))


def _grow(prompts: Sequence[Sequence[Slot]]) -> tuple[list[tuple[int, Slot]], list[int]]:
    """Build the tree: parent (-1 for the root) and slot of each node, parents first; and each prompt's last node."""
    nodes: dict[tuple[int, Slot], int] = {}
    ends = []
    for prompt in prompts:
        node = -1
        for slot in prompt:
            node = nodes.setdefault((node, slot), len(nodes))
        ends.append(node)
    return list(nodes), ends


def _lay_out(prompts: Sequence[Sequence[Slot]]) -> Layout:
    nodes, ends = _grow(prompts)
    nodes += [(-1, FILLER)] * (-len(nodes) % MULTIPLE)
    sees, depth = torch.eye(len(nodes), dtype=torch.bool), torch.zeros(len(nodes), dtype=torch.long)
    for node, (parent, _) in enumerate(nodes):
        if parent >= 0:
            sees[node] |= sees[parent]
            depth[node] = depth[parent] + 1
    slots = torch.tensor([slot for _, slot in nodes])
    order = (slots >= 0).long().argsort(stable=True)  # learned tokens first
    slots, place = slots[order], order.argsort()
    learned = int((slots < 0).sum())
    return Layout(
        learned=-1 - slots[:learned],
        fixed=slots[learned:],
        positions=depth[order],
        sees=sees[order][:, order],
        ends=place[torch.tensor(ends)],
    )


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
