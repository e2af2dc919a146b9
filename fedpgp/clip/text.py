"""The prompt encoder: text features of learned prompts, with the work that prompts share done once.

Plain CLIP encodes C prompts of 77 tokens. The tower is causal and pooled at end-of-text, so these are exact:
nothing after end-of-text is computed; the prefix that all classes share runs once per prompt, its keys and
values serve every class; the last layer runs at the end-of-text tokens only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.layout import Layout
from fedpgp.clip.tower import Block, TextTower

KeysValues = tuple[Tensor, Tensor]


class PromptEncoder:
    """Encodes stacks of contexts for one layout of class names. Pure: the same context gives the same features.

    Args:
        tower: the frozen text tower.
        layouts: the classes, in order, in one or more chunks with the same prefix. With several, the activations of
            one chunk at a time are kept (recomputed in the backward pass), which bounds memory.
    """

    def __init__(self, tower: TextTower, layouts: tuple[Layout, ...]) -> None:
        self.tower = tower
        device = tower.tokens.device
        self.chunks = tuple(_Chunk(tower, layout) for layout in layouts)
        self.prefix_slots = layouts[0].prefix.to(device)
        length = len(self.prefix_slots)
        self.prefix_positions = tower.positions[:length]
        self.causal = torch.full((length, length), float("-inf"), device=device, dtype=tower.tokens.dtype).triu(1)

    def encode(self, ctx: Tensor) -> Tensor:
        """Text features, not normalised.

        Args:
            ctx: learned contexts (P, L, D), or class-specific (P, C, L, D). P is any stack of prompts: clients,
                prompts per client, images, global and personal ones.

        Returns:
            Features (P, C, E) in float32.
        """
        ctx = ctx.flatten(1, -2).to(self.tower.tokens.dtype)
        memory = self._prefix(ctx)
        if len(self.chunks) == 1:
            return self.chunks[0].encode(ctx, memory).float()
        parts = [checkpoint(chunk.encode, ctx, memory, use_reentrant=False) for chunk in self.chunks]
        return torch.cat(parts, dim=1).float()

    def _prefix(self, ctx: Tensor) -> list[KeysValues]:
        """Keys and values (P, H, L', d) of the shared prefix, per layer."""
        tower = self.tower
        x = _embed(tower, ctx, self.prefix_slots) + self.prefix_positions
        memory = []
        for block in tower.blocks[:-1]:
            projected = block.qkv.linear(block.norm_1.norm(x, tower.eps))
            q, k, v = (_heads(part, tower.heads) for part in projected.chunk(3, -1))
            memory.append((k, v))
            weights = torch.softmax(_scaled(q) @ k.mT + self.causal, dim=-1)
            x = _finish(tower, block, x, _merge(weights @ v))
        last = tower.blocks[-1]  # of the last layer, only what the suffixes look at
        keys_values = last.qkv.rows(tower.width).linear(last.norm_1.norm(x, tower.eps))
        k, v = (_heads(part, tower.heads) for part in keys_values.chunk(2, -1))
        return [*memory, (k, v)]


class _Chunk:
    """The suffixes of some classes. Shapes: T packed tokens, (C, S) padded, H heads of width d."""

    def __init__(self, tower: TextTower, layout: Layout) -> None:
        device, dtype = tower.tokens.device, tower.tokens.dtype
        self.tower = tower
        self.slots = layout.suffix.to(device)
        self.positions = tower.positions[layout.suffix_positions.to(device)]
        self.pad = None if layout.pad is None else layout.pad.to(device)
        self.pack = None if layout.pack is None else layout.pack.to(device)
        self.ends = layout.ends.to(device)
        self.shape = (layout.num_classes, layout.longest)
        longest = layout.longest
        # Padding stands behind a class's end, so causality alone hides it from every real token.
        self.causal = torch.full((longest, longest), float("-inf"), device=device, dtype=dtype).triu(1)
        behind = torch.arange(longest, device=device) >= layout.lengths.to(device)[:, None]
        self.behind_end = torch.zeros(behind.shape, device=device, dtype=dtype).masked_fill_(behind, float("-inf"))

    def encode(self, ctx: Tensor, memory: list[KeysValues]) -> Tensor:
        """Features (P, C, E) from the contexts (P, L, D) and the prefix's keys and values."""
        tower = self.tower
        # Without context tokens in the suffix all prompts start alike: the first axis stays 1 until they differ.
        x = _embed(tower, ctx, self.slots) + self.positions
        for block, prefix in zip(tower.blocks[:-1], memory[:-1], strict=True):
            projected = block.qkv.linear(block.norm_1.norm(x, tower.eps))
            q, k, v = (self._padded(part) for part in projected.chunk(3, -1))
            mixed = self._attend(q, k, v, prefix, self.causal)
            if self.pack is not None:
                mixed = mixed.index_select(1, self.pack)
            x = _finish(tower, block, x, mixed)

        last, width = tower.blocks[-1], tower.width
        normed = last.norm_1.norm(x, tower.eps)
        k, v = (self._padded(part) for part in last.qkv.rows(width).linear(normed).chunk(2, -1))
        q = last.qkv.rows(0, width).linear(normed.index_select(1, self.ends))
        q = _heads(q, tower.heads).unflatten(2, (-1, 1))
        mixed = self._attend(q, k, v, memory[-1], self.behind_end[:, None])
        x = _finish(tower, last, x.index_select(1, self.ends), mixed)
        return tower.projection.linear(tower.norm.norm(x, tower.eps))

    def _padded(self, x: Tensor) -> Tensor:
        """(P, T, D) packed to (P, H, C, S, d) padded."""
        if self.pad is not None:
            x = x.index_select(1, self.pad)
        padded: Tensor = _heads(x, self.tower.heads).unflatten(2, self.shape)
        return padded

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, prefix: KeysValues, mask: Tensor) -> Tensor:
        """Attention of queries (P, H, C, Q, d) to the prefix and, under `mask`, to their own class; (P, C Q, D)."""
        prefix_k, prefix_v = prefix
        q = _scaled(q)
        flat = q.flatten(2, 3)
        to_prefix = (flat @ prefix_k.mT).unflatten(2, q.shape[2:4])
        to_own = q @ k.mT + mask
        to_own = to_own.expand(to_prefix.shape[0], -1, -1, -1, -1)
        weights = torch.softmax(torch.cat([to_prefix, to_own], dim=-1), dim=-1)
        on_prefix, on_own = weights.split([to_prefix.shape[-1], to_own.shape[-1]], dim=-1)
        mixed = on_prefix.flatten(2, 3) @ prefix_v + (on_own @ v).flatten(2, 3)
        return _merge(mixed)


def _embed(tower: TextTower, ctx: Tensor, slots: Tensor) -> Tensor:
    """Embeddings (P, N, D) of the slots; (1, N, D) where none of them is learned."""
    fixed = tower.tokens[slots.clamp(min=0)].unsqueeze(0)
    learned = slots < 0
    if not bool(learned.any()):
        return fixed
    chosen = ctx.index_select(1, (-1 - slots).clamp(min=0))
    return torch.where(learned[:, None], chosen, fixed)


def _finish(tower: TextTower, block: Block, x: Tensor, mixed: Tensor) -> Tensor:
    """Both residual additions of a block, given the attention's mixture of values."""
    x = x + block.out.linear(mixed)
    return x + block.mlp_out.linear(tower.activate(block.mlp_in.linear(block.norm_2.norm(x, tower.eps))))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(P, N, D) to (P, H, N, d)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """(P, H, N, d) to (P, N, D)."""
    return x.transpose(1, 2).flatten(-2)


def _scaled(q: Tensor) -> Tensor:
    return q * float(q.shape[-1] ** -0.5)
