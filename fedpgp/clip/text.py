"""The prompt encoder: text features of learned prompts, with the work that prompts share done once.

Plain CLIP encodes C prompts of 77 tokens. The tower is causal and pooled at end-of-text, so these are exact:
nothing after end-of-text is computed; the prefix that all classes share runs once per prompt, its keys and
values serve every class; the last layer runs at the end-of-text tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.adapters import Adapters, adapt
from fedpgp.clip.layout import Layout
from fedpgp.clip.tower import Block, TextTower, merge_heads, split_heads

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

    def encode(self, ctx: Tensor, deep: Tensor | None = None, adapters: Adapters | None = None) -> Tensor:
        """Text features, not normalised.

        Args:
            ctx: learned contexts (P, L, D), or class-specific (P, C, L, D). P is any stack of prompts: clients,
                prompts per client, images, global and personal ones.
            deep: what stands in the places of the context before layers 1, 2, ... (P, J - 1, ..., L, D), instead of
                what the layer before made of it; None: nothing is replaced.
            adapters: low-rank parts of the tower's attention, of each of the P prompts; one context (1, L, D) then
                serves all. None: the tower as it is.

        Returns:
            Features (P, C, E) in float32.
        """
        dtype = self.tower.tokens.dtype
        ctx = ctx.flatten(1, -2).to(dtype)
        layers = [ctx] if deep is None else [ctx, *deep.flatten(2, -2).to(dtype).unbind(1)]
        blocks = self.tower.blocks if adapters is None else adapt(self.tower.blocks, adapters)
        memory = self._prefix(layers, blocks)
        if len(self.chunks) == 1:
            return self.chunks[0].encode(layers, memory, blocks).float()
        parts = [checkpoint(chunk.encode, layers, memory, blocks, use_reentrant=False) for chunk in self.chunks]
        return torch.cat(parts, dim=1).float()

    def _prefix(self, layers: Sequence[Tensor], blocks: Sequence[Block]) -> list[KeysValues]:
        """Keys and values (P, H, L', d) of the shared prefix, per layer, from the tokens (P, L, D) learned for each."""
        tower = self.tower
        x = _embed(tower, layers[0], self.prefix_slots) + self.prefix_positions
        memory = []
        for depth, block in enumerate(blocks[:-1]):
            x = _renew(x, layers, depth, self.prefix_slots)
            projected = block.qkv.linear(block.norm_1.norm(x, tower.eps))
            q, k, v = (split_heads(part, tower.heads) for part in projected.chunk(3, -1))
            memory.append((k, v))
            weights = torch.softmax(_scaled(q) @ k.mT + self.causal, dim=-1)
            x = block.finish(x, merge_heads(weights @ v), tower.eps, tower.activation)
        last = blocks[-1]  # of the last layer, only what the suffixes look at
        x = _renew(x, layers, len(blocks) - 1, self.prefix_slots)
        keys_values = last.qkv.rows(tower.width).linear(last.norm_1.norm(x, tower.eps))
        k, v = (split_heads(part, tower.heads) for part in keys_values.chunk(2, -1))
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

    def encode(self, layers: Sequence[Tensor], memory: list[KeysValues], blocks: Sequence[Block]) -> Tensor:
        """Features (P, C, E) from the tokens (P, L, D) learned per layer and the prefix's keys and values."""
        tower = self.tower
        # Without context tokens in the suffix all prompts start alike: the first axis stays 1 until they differ.
        x = _embed(tower, layers[0], self.slots) + self.positions
        for depth, (block, prefix) in enumerate(zip(blocks[:-1], memory[:-1], strict=True)):
            x = _renew(x, layers, depth, self.slots)
            projected = block.qkv.linear(block.norm_1.norm(x, tower.eps))
            q, k, v = (self._padded(part) for part in projected.chunk(3, -1))
            mixed = self._attend(q, k, v, prefix, self.causal)
            if self.pack is not None:
                mixed = mixed.index_select(1, self.pack)
            x = block.finish(x, mixed, tower.eps, tower.activation)

        last, width = blocks[-1], tower.width
        x = _renew(x, layers, len(blocks) - 1, self.slots)
        normed = last.norm_1.norm(x, tower.eps)
        k, v = (self._padded(part) for part in last.qkv.rows(width).linear(normed).chunk(2, -1))
        q = last.qkv.rows(0, width).linear(normed.index_select(1, self.ends))
        q = split_heads(q, tower.heads).unflatten(2, (-1, 1))
        mixed = self._attend(q, k, v, memory[-1], self.behind_end[:, None])
        x = last.finish(x.index_select(1, self.ends), mixed, tower.eps, tower.activation)
        return tower.projection.linear(tower.norm.norm(x, tower.eps))

    def _padded(self, x: Tensor) -> Tensor:
        """(P, T, D) packed to (P, H, C, S, d) padded."""
        if self.pad is not None:
            x = x.index_select(1, self.pad)
        padded: Tensor = split_heads(x, self.tower.heads).unflatten(2, self.shape)
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
        return merge_heads(mixed)


def _embed(tower: TextTower, ctx: Tensor, slots: Tensor) -> Tensor:
    """Embeddings (P, N, D) of the slots; (1, N, D) where none of them is learned."""
    return _fill(tower.tokens[slots.clamp(min=0)].unsqueeze(0), ctx, slots)


def _renew(x: Tensor, layers: Sequence[Tensor], depth: int, slots: Tensor) -> Tensor:
    """The input of layer `depth`, with the tokens that are learned for it, if any, in their slots."""
    return _fill(x, layers[depth], slots) if 0 < depth < len(layers) else x


def _fill(x: Tensor, ctx: Tensor, slots: Tensor) -> Tensor:
    """The tokens x, (P or 1, N, D), with the learned ones in their slots."""
    learned = slots < 0
    if not bool(learned.any()):
        return x
    chosen = ctx.index_select(1, (-1 - slots).clamp(min=0))
    return torch.where(learned[:, None], chosen, x)


def _scaled(q: Tensor) -> Tensor:
    return q * float(q.shape[-1] ** -0.5)
