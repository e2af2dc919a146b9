"""The frozen causal text tower as plain tensors, small to send to an actor and usable without open_clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUICK_GELU = 1.702  # quick_gelu(x) = x * sigmoid(1.702 x)

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
        hidden = activate(self.mlp_in.transposed(self.norm_2.norm(x, eps).flatten(0, -2)), activation)
        return x + self.mlp_out.linear(hidden.T).view_as(x)


@dataclass(frozen=True)
class TextTower:
    """Weights of a causal text transformer, pooled at the end-of-text token.

    Shapes: V tokens in the (pruned) vocabulary, S positions, D token width, E joint embedding width.
    Layer scales are folded into the projections before them, and QuickGELU's factor into the maps around it
    (`quick_gelu(x) = silu(1.702 x) / 1.702`), so that all models have the same forward pass.
    """

    tokens: Tensor  # (V, D)
    positions: Tensor  # (S, D)
    blocks: tuple[Block, ...]
    norm: Affine
    projection: Affine  # (E, D)
    heads: int
    eps: float
    activation: Activation

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.positions.shape[1]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TextTower:
        """Move the tower to another device or precision."""
        moved: TextTower = map_tensors(self, lambda tensor: tensor.to(device, dtype))
        return moved

    def pruned(self, token_ids: Iterable[int]) -> TextTower:
        """Keep the embeddings of `token_ids` only, which become tokens 0, 1, ... in that order."""
        return replace(self, tokens=self.tokens[torch.tensor(list(token_ids), dtype=torch.long)].clone())

    @classmethod
    def from_open_clip(cls, model: nn.Module) -> TextTower:
        """Read the tower of an open_clip `CLIP` (text transformer at the top level) or `CustomTextCLIP` (`.text`)."""
        text: Any = model.text if hasattr(model, "text") else model
        projection = text.text_projection
        if projection is None:
            affine = Affine(torch.eye(text.ln_final.weight.shape[0]), None)
        elif isinstance(projection, nn.Linear):
            affine = read_affine(projection)
        else:
            affine = Affine(projection.detach().t().contiguous(), None)
        tower = cls(
            tokens=text.token_embedding.weight.detach(),
            positions=text.positional_embedding.detach(),
            blocks=read_blocks(text.transformer),
            norm=read_affine(text.ln_final),
            projection=affine,
            heads=text.transformer.resblocks[0].attn.num_heads,
            eps=text.ln_final.eps,
            activation=read_activation(text.transformer),
        )
        return tower.to("cpu", torch.float32)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply the nonlinearity of an MLP."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (P, N, D) to (P, H, N, d)."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (P, H, N, d) to (P, N, D)."""
    return x.transpose(1, 2).flatten(-2)


def read_activation(transformer: Any) -> Activation:
    """Read the nonlinearity of an open_clip transformer whose factors are folded into the weights."""
    gelu = transformer.resblocks[0].mlp.gelu
    if type(gelu).__name__ == "QuickGELU":
        return "silu"
    return "gelu_tanh" if getattr(gelu, "approximate", "none") == "tanh" else "gelu"


def read_blocks(transformer: Any) -> tuple[Block, ...]:
    """Read the blocks of an open_clip transformer, with folded factors."""
    factor = QUICK_GELU if read_activation(transformer) == "silu" else 1.0
    return tuple(_block(block, factor) for block in transformer.resblocks)


def read_affine(module: nn.Module) -> Affine:
    """Read weight and bias of a linear layer or a layer norm."""
    weight, bias = module.weight, module.bias
    return Affine(weight.detach(), None if bias is None else bias.detach())  # type: ignore[operator]


def _scaled(affine: Affine, scale: float | Tensor, bias_scale: float | Tensor) -> Affine:
    column = scale[:, None] if isinstance(scale, Tensor) else scale
    return Affine(affine.weight * column, None if affine.bias is None else affine.bias * bias_scale)


def _block(block: Any, factor: float) -> Block:
    scale_1, scale_2 = (getattr(layer, "gamma", torch.ones(())).detach() for layer in (block.ls_1, block.ls_2))
    width = block.ln_1.weight.shape[0]
    return Block(
        norm_1=read_affine(block.ln_1),
        qkv=Affine(block.attn.in_proj_weight.detach(), block.attn.in_proj_bias.detach()),
        out=_scaled(read_affine(block.attn.out_proj), scale_1.expand(width), scale_1),
        norm_2=read_affine(block.ln_2),
        mlp_in=_scaled(read_affine(block.mlp.c_fc), factor, factor),
        mlp_out=_scaled(read_affine(block.mlp.c_proj), scale_2.expand(width) / factor, scale_2),
    )


def in_chunks(function: Callable[..., Tensor], size: int, *stacks: Tensor) -> Tensor:
    """Compute `function(*stacks)` on at most `size` rows of the stacks (P, ...) at a time, to bound memory.

    With several chunks the activations are recomputed in the backward pass.

    Args:
        function: computes each row from that row of the stacks alone.
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
