"""The frozen towers as plain tensors, small to send to an actor and usable without open_clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedpgp.clip.images import normalise
from fedpgp.clip.model import ImageSpec
from fedpgp.core.errors import BackboneError

QUICK_GELU = 1.702  # quick_gelu(x) = x * sigmoid(1.702 x)
IMAGES_PER_CHUNK = 32  # images whose activations are kept at once

Activation = Literal["silu", "gelu", "gelu_tanh"]
"""Nonlinearity of a folded tower; QuickGELU becomes silu."""


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a linear map or of a layer norm."""

    weight: Tensor
    bias: Tensor | None

    def linear(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`."""
        return F.linear(x, self.weight, self.bias)

    def transposed(self, x: Tensor) -> Tensor:
        """`weight @ x.T + bias`, features in rows: (O, M) from (M, D).

        On a CPU, with more features than tokens, this is up to a fifth faster if M is a multiple of 8, and as much
        slower otherwise.
        """
        return self.weight @ x.T if self.bias is None else torch.addmm(self.bias[:, None], self.weight, x.T)

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """Layer normalization over the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps)

    def rows(self, start: int, stop: int | None = None) -> Affine:
        """Restrict the map to some output coordinates (a view)."""
        return Affine(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


@dataclass(frozen=True)
class Block:
    """One residual attention block: `x + attention(norm_1(x))`, then `x + mlp(norm_2(x))`."""

    norm_1: Affine
    qkv: Affine  # (3 D, D): queries, keys, values
    out: Affine
    norm_2: Affine
    mlp_in: Affine
    mlp_out: Affine

    def finish(self, x: Tensor, mixed: Tensor, eps: float, activation: Activation) -> Tensor:
        """Apply both residual additions, given the output of attention before its projection."""
        x = x + self.out.linear(mixed)
        hidden = self.mlp_in.transposed(self.norm_2.norm(x, eps).flatten(0, -2))
        if activation == "silu":
            hidden = F.silu(hidden)
        else:
            hidden = F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")
        return x + self.mlp_out.linear(hidden.T).view_as(x)


@dataclass(frozen=True)
class Tower:
    """Weights of a transformer, pooled at one token.

    Shapes: S positions, W token width, E joint embedding width.
    Layer scales are folded into the projections before them, and QuickGELU's factor into the maps around it
    (`quick_gelu(x) = silu(1.702 x) / 1.702`), so that all models have the same forward pass.
    """

    positions: Tensor  # (S, W)
    blocks: tuple[Block, ...]
    norm: Affine
    projection: Affine  # (E, W)
    heads: int
    eps: float
    activation: Activation

    @property
    def width(self) -> int:
        """W, the width of a token."""
        return self.positions.shape[1]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Move the tower to another device or precision."""
        moved: Self = map_tensors(self, lambda tensor: tensor.to(device, dtype))
        return moved


@dataclass(frozen=True)
class TextTower(Tower):
    """A causal text transformer, pooled at the end-of-text token, with V tokens in its (pruned) vocabulary."""

    tokens: Tensor  # (V, W)

    def pruned(self, token_ids: Tensor) -> TextTower:
        """Keep the embeddings of `token_ids` only, which become tokens 0, 1, ... in that order."""
        return replace(self, tokens=self.tokens[token_ids])

    @classmethod
    def from_open_clip(cls, model: nn.Module) -> TextTower:
        """Read the tower of an open_clip `CLIP` (text transformer at the top level) or `CustomTextCLIP` (`.text`)."""
        text: Any = model.text if hasattr(model, "text") else model
        projection = text.text_projection
        if projection is None:
            affine = Affine(torch.eye(text.ln_final.weight.shape[0]), None)
        elif isinstance(projection, nn.Linear):
            affine = _affine(projection)
        else:
            affine = Affine(projection.detach().t().contiguous(), None)
        return cls(
            tokens=text.token_embedding.weight.detach(),
            positions=text.positional_embedding.detach(),
            blocks=_blocks(text.transformer),
            norm=_affine(text.ln_final),
            projection=affine,
            heads=text.transformer.resblocks[0].attn.num_heads,
            eps=text.ln_final.eps,
            activation=_activation(text.transformer),
        ).to("cpu", torch.float32)


@dataclass(frozen=True)
class VisualTower(Tower):
    """A plain vision transformer, pooled at its class token, which M patches of p x p pixels follow."""

    patch: Tensor  # (W, 3, p, p)
    class_token: Tensor  # (W,)
    norm_before: Affine | None
    image: ImageSpec

    def encode(self, pixels: Tensor, prompts: Tensor) -> Tensor:
        """Compute image features (P, E) in float32, not normalized. Long stacks are encoded in chunks to limit memory.

        Args:
            pixels: as cached, before normalization (P, 3, H, W).
            prompts: learned tokens (P, J, L, W): those of layer 0 follow the patches; those of layers 1 .. J - 1
                replace the outputs of the layer before.
        """
        return in_chunks(self._encode, IMAGES_PER_CHUNK, pixels, prompts)

    def _encode(self, pixels: Tensor, prompts: Tensor) -> Tensor:
        dtype = self.positions.dtype
        prompts = prompts.to(dtype)
        patches = F.conv2d(normalise(pixels, self.image).to(dtype), self.patch, stride=self.patch.shape[-1])
        first = self.class_token.expand(len(pixels), 1, -1)
        x = torch.cat([first, patches.flatten(2).mT], dim=1) + self.positions
        x = torch.cat([x, prompts[:, 0]], dim=1)
        if self.norm_before is not None:
            x = self.norm_before.norm(x, self.eps)
        for depth, block in enumerate(self.blocks):
            if 0 < depth < prompts.shape[1]:
                x = torch.cat([x[:, : -prompts.shape[2]], prompts[:, depth]], dim=1)
            projected = block.qkv.linear(block.norm_1.norm(x, self.eps))
            q, k, v = (split_heads(part, self.heads) for part in projected.chunk(3, -1))
            mixed = merge_heads(F.scaled_dot_product_attention(q, k, v))
            x = block.finish(x, mixed, self.eps, self.activation)
        return self.projection.linear(self.norm.norm(x[:, 0], self.eps)).float()

    @classmethod
    def from_open_clip(cls, visual: nn.Module, image: ImageSpec) -> VisualTower:
        """Read the tower of open_clip; raise `BackboneError` if it is not a plain ViT, pooled at its class token."""
        from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

        plain = (
            isinstance(visual, VisionTransformer)
            and visual.attn_pool is None
            and visual.pool_type == "tok"
            and all(type(block) is ResidualAttentionBlock for block in visual.transformer.resblocks)
        )
        if not plain:
            raise BackboneError(
                "learned image tokens need a plain ViT of open_clip, such as ViT-B-16-quickgelu, "
                f"not an image tower of type {type(visual).__name__}"
            )
        tower: Any = visual
        return cls(
            patch=tower.conv1.weight.detach(),
            class_token=tower.class_embedding.detach(),
            positions=tower.positional_embedding.detach(),
            norm_before=None if isinstance(tower.ln_pre, nn.Identity) else _affine(tower.ln_pre),
            blocks=_blocks(tower.transformer),
            norm=_affine(tower.ln_post),
            projection=Affine(tower.proj.detach().t().contiguous(), None),
            heads=tower.transformer.resblocks[0].attn.num_heads,
            eps=tower.ln_post.eps,
            activation=_activation(tower.transformer),
            image=image,
        ).to("cpu", torch.float32)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (P, N, D) to (P, H, N, d)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (P, H, N, d) to (P, N, D)."""
    return x.transpose(1, 2).flatten(-2)


def in_chunks(function: Callable[..., Tensor], size: int, *stacks: Tensor) -> Tensor:
    """Compute `function(*stacks)` on at most `size` rows of the stacks (P, ...) at a time, to bound memory.

    `function` computes each row from that row of the stacks alone. With several chunks the activations are recomputed
    in the backward pass.
    """
    if len(stacks[0]) <= size:
        return function(*stacks)
    pieces = zip(*(stack.split(size) for stack in stacks), strict=True)
    return torch.cat([checkpoint(function, *piece, use_reentrant=False) for piece in pieces])


def tensors_of(node: Any) -> list[Tensor]:
    """List all tensors in a tower, or in a tuple of towers."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(node, collect)
    return found


def map_tensors(node: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply `function` to each tensor in nested dataclasses and tuples."""
    if isinstance(node, Tensor):
        return function(node)
    if isinstance(node, tuple):
        return tuple(map_tensors(item, function) for item in node)
    if is_dataclass(node) and not isinstance(node, type):
        return replace(node, **{item.name: map_tensors(getattr(node, item.name), function) for item in fields(node)})
    return node


def _activation(transformer: Any) -> Activation:
    """Read the nonlinearity of an open_clip transformer whose factors are folded into the weights."""
    gelu = transformer.resblocks[0].mlp.gelu
    if type(gelu).__name__ == "QuickGELU":
        return "silu"
    return "gelu_tanh" if getattr(gelu, "approximate", "none") == "tanh" else "gelu"


def _affine(module: Any) -> Affine:
    """Read weight and bias of a linear layer or a layer norm."""
    return Affine(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _blocks(transformer: Any) -> tuple[Block, ...]:
    """Read the blocks of an open_clip transformer, with folded factors."""
    factor = QUICK_GELU if _activation(transformer) == "silu" else 1.0
    blocks = []
    for block in transformer.resblocks:
        scale_1, scale_2 = (getattr(layer, "gamma", torch.ones(())).detach() for layer in (block.ls_1, block.ls_2))
        width = block.ln_1.weight.shape[0]
        blocks.append(
            Block(
                norm_1=_affine(block.ln_1),
                qkv=Affine(block.attn.in_proj_weight.detach(), block.attn.in_proj_bias.detach()),
                out=_scaled(_affine(block.attn.out_proj), scale_1.expand(width), scale_1),
                norm_2=_affine(block.ln_2),
                mlp_in=_scaled(_affine(block.mlp.c_fc), factor, factor),
                mlp_out=_scaled(_affine(block.mlp.c_proj), scale_2.expand(width) / factor, scale_2),
            )
        )
    return tuple(blocks)


def _scaled(affine: Affine, scale: float | Tensor, bias_scale: float | Tensor) -> Affine:
    column = scale[:, None] if isinstance(scale, Tensor) else scale
    return Affine(affine.weight * column, None if affine.bias is None else affine.bias * bias_scale)
