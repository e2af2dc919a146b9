"""The prompt encoder: text features of learned prompts, with shared work done once.

Plain CLIP encodes C prompts of 77 tokens. The tower is causal and pooled at end-of-text, so the following is exact:
tokens after end-of-text are not computed; common prefixes of prompts are encoded once (see `Layout`); the first layer's
projections of fixed tokens are constants; the last layer runs at the end-of-text tokens only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.adapters import Adapters, adapt
from fedpgp.clip.prompt_tree import Layout
from fedpgp.clip.text_tower import Block, TextTower, merge_heads, split_heads


class PromptEncoder:
    """Encodes stacks of contexts for one layout of class names. Equal contexts give equal features.

    Args:
        tower: the frozen text tower.
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
        q, k, v = (split_heads(part, self.tower.heads).flatten(0, 1) for part in (q, k, v))
        scores = torch.baddbmm(mask, q, k.mT, alpha=float(q.shape[-1] ** -0.5))
        mixed = torch.softmax(scores, dim=-1) @ v
        return merge_heads(mixed.unflatten(0, (-1, self.tower.heads)))
