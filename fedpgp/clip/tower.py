"""The frozen causal text tower as plain tensors: small to send to an actor, usable without open_clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUICK_GELU = 1.702  # quick_gelu(x) = x * sigmoid(1.702 x)


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a linear map or of a layer norm."""

    weight: Tensor
    bias: Tensor | None

    def linear(self, x: Tensor) -> Tensor:
        """`x @ weight.T + bias`."""
        return F.linear(x, self.weight, self.bias)

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """Layer normalisation over the last axis."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, eps)

    def rows(self, start: int, stop: int | None = None) -> Affine:
        """The map to some of the output coordinates (a view)."""
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


@dataclass(frozen=True)
class TextTower:
    """Weights of a causal text transformer that is pooled at the end-of-text token.

    Shapes: V tokens in the (pruned) vocabulary, S positions, D token width, E joint embedding width.
    Layer scales are folded into the projections before them, and QuickGELU's factor into the maps around
    it (`quick_gelu(x) = silu(1.702 x) / 1.702`), so that the forward pass is the same for all models.
    """

    tokens: Tensor  # (V, D)
    positions: Tensor  # (S, D)
    blocks: tuple[Block, ...]
    norm: Affine
    projection: Affine  # (E, D)
    heads: int
    eps: float
    activation: Literal["silu", "gelu", "gelu_tanh"]

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.positions.shape[1]

    def activate(self, x: Tensor) -> Tensor:
        """The nonlinearity of the MLP."""
        if self.activation == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")

    def to(self, device: torch.device | str, dtype: torch.dtype) -> TextTower:
        """The same tower elsewhere or in another precision."""
        moved: TextTower = _map(self, lambda tensor: tensor.to(device, dtype))
        return moved

    def pruned(self, token_ids: Iterable[int]) -> TextTower:
        """The same tower with the embeddings of `token_ids` only, which become tokens 0, 1, ... in that order."""
        return replace(self, tokens=self.tokens[torch.tensor(list(token_ids), dtype=torch.long)].clone())

    @classmethod
    def from_open_clip(cls, model: nn.Module) -> TextTower:
        """Read the tower of an open_clip `CLIP` (text transformer at the top level) or `CustomTextCLIP` (`.text`)."""
        text: Any = model.text if hasattr(model, "text") else model
        first = text.transformer.resblocks[0]
        name = type(first.mlp.gelu).__name__
        quick = name == "QuickGELU"
        tanh = getattr(first.mlp.gelu, "approximate", "none") == "tanh"
        projection = text.text_projection
        if projection is None:
            affine = Affine(torch.eye(text.ln_final.weight.shape[0]), None)
        elif isinstance(projection, nn.Linear):
            affine = _affine(projection)
        else:
            affine = Affine(projection.detach().t().contiguous(), None)
        tower = cls(
            tokens=text.token_embedding.weight.detach(),
            positions=text.positional_embedding.detach(),
            blocks=tuple(_block(block, QUICK_GELU if quick else 1.0) for block in text.transformer.resblocks),
            norm=_affine(text.ln_final),
            projection=affine,
            heads=first.attn.num_heads,
            eps=text.ln_final.eps,
            activation="silu" if quick else "gelu_tanh" if tanh else "gelu",
        )
        return tower.to("cpu", torch.float32)


def _affine(module: nn.Module) -> Affine:
    weight, bias = module.weight, module.bias
    return Affine(weight.detach(), None if bias is None else bias.detach())  # type: ignore[operator]


def _scaled(affine: Affine, scale: float | Tensor, bias_scale: float | Tensor) -> Affine:
    column = scale[:, None] if isinstance(scale, Tensor) else scale
    return Affine(affine.weight * column, None if affine.bias is None else affine.bias * bias_scale)


def _block(block: Any, factor: float) -> Block:
    scale_1, scale_2 = (getattr(layer, "gamma", torch.ones(())).detach() for layer in (block.ls_1, block.ls_2))
    width = block.ln_1.weight.shape[0]
    return Block(
        norm_1=_affine(block.ln_1),
        qkv=Affine(block.attn.in_proj_weight.detach(), block.attn.in_proj_bias.detach()),
        out=_scaled(_affine(block.attn.out_proj), scale_1.expand(width), scale_1),
        norm_2=_affine(block.ln_2),
        mlp_in=_scaled(_affine(block.mlp.c_fc), factor, factor),
        mlp_out=_scaled(_affine(block.mlp.c_proj), scale_2.expand(width) / factor, scale_2),
    )


def _map(node: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(node, Tensor):
        return function(node)
    if isinstance(node, tuple):
        return tuple(_map(item, function) for item in node)
    if isinstance(node, TextTower | Block | Affine):
        return replace(node, **{item.name: _map(getattr(node, item.name), function) for item in fields(node)})
    return node
