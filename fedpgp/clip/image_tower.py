"""The frozen image tower as plain tensors, with learned tokens, for methods that prompt images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.clip.images import normalise
from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_tower import (
    Activation,
    Affine,
    Block,
    in_chunks,
    map_tensors,
    merge_heads,
    read_activation,
    read_affine,
    read_blocks,
    split_heads,
)
from fedpgp.core.errors import BackboneError

IMAGES_PER_CHUNK = 32  # images whose activations are kept at once


@dataclass(frozen=True)
class VisualTower:
    """Weights of a plain vision transformer, pooled at its class token; factors folded as in `TextTower`.

    Shapes: W token width, M patches of p x p pixels, E joint embedding width.
    """

    patch: Tensor  # (W, 3, p, p)
    class_token: Tensor  # (W,)
    positions: Tensor  # (1 + M, W)
    norm_before: Affine | None
    blocks: tuple[Block, ...]
    norm: Affine
    projection: Affine  # (E, W)
    heads: int
    eps: float
    activation: Activation
    image: ImageSpec

    @property
    def width(self) -> int:
        """W, the width of a token."""
        return self.positions.shape[1]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> VisualTower:
        """Move the tower to another device or precision."""
        moved: VisualTower = map_tensors(self, lambda tensor: tensor.to(device, dtype))
        return moved

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
        """Read the image tower of an open_clip model; raise `BackboneError` if it is not a plain ViT."""
        check_plain(visual)
        tower: Any = visual
        plain = cls(
            patch=tower.conv1.weight.detach(),
            class_token=tower.class_embedding.detach(),
            positions=tower.positional_embedding.detach(),
            norm_before=None if isinstance(tower.ln_pre, nn.Identity) else read_affine(tower.ln_pre),
            blocks=read_blocks(tower.transformer),
            norm=read_affine(tower.ln_post),
            projection=Affine(tower.proj.detach().t().contiguous(), None),
            heads=tower.transformer.resblocks[0].attn.num_heads,
            eps=tower.ln_post.eps,
            activation=read_activation(tower.transformer),
            image=image,
        )
        return plain.to("cpu", torch.float32)


def check_plain(visual: nn.Module) -> None:
    """Raise `BackboneError` if an image tower is not a plain ViT of open_clip, pooled at its class token."""
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
