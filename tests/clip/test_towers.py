"""The image tower with learned tokens, against open_clip's own modules."""

from __future__ import annotations

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer

from fedpgp.clip import towers
from fedpgp.clip.images import normalise
from fedpgp.clip.model import ImageSpec
from fedpgp.clip.towers import VisualTower
from fedpgp.core.errors import BackboneError

SPEC = ImageSpec(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", "shortest")
DEPTH, L, W = 2, 3, 32


def vit(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = {"image_size": 16, "patch_size": 4, "width": W, "layers": 3, "heads": 4, "mlp_ratio": 2.0}
        tower = VisionTransformer(**settings, output_dim=24, **changes).eval().requires_grad_(False)
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tower


def draw(count):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return pixels, torch.randn(count, DEPTH, L, W, generator=generator)


def plain(tower, pixels, prompts):
    """Prompts behind the patches before the first norm; before layer 1 in the place of what became of them."""
    x = tower.conv1(normalise(pixels, SPEC)).flatten(2).mT
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], dim=1) + tower.positional_embedding
    x = tower.ln_pre(torch.cat([x, prompts[:, 0]], dim=1))
    for layer, block in enumerate(tower.transformer.resblocks):
        if layer in range(1, DEPTH):
            x = torch.cat([x[:, :-L], prompts[:, layer]], dim=1)
        x = block(x)
    return tower.ln_post(x[:, 0]) @ tower.proj


@pytest.mark.parametrize("changes", [{}, {"ls_init_value": 0.3}, {"no_ln_pre": True}], ids=str)
def test_equals_open_clips_blocks_in_value_and_gradient(changes):
    tower, (pixels, prompts) = vit(**changes), draw(4)
    prompts.requires_grad_()
    ours = VisualTower.from_open_clip(tower, SPEC).encode(pixels, prompts)
    theirs = plain(tower, pixels, prompts)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    gradient, expected = (torch.autograd.grad(x.square().sum(), prompts)[0] for x in (ours, theirs))
    assert (gradient - expected).norm() / expected.norm() < 1e-5


def test_without_prompts_it_is_the_tower_itself():
    tower, (pixels, prompts) = vit(), draw(2)
    encoded = VisualTower.from_open_clip(tower, SPEC).encode(pixels, prompts[:, :1, :0])
    torch.testing.assert_close(encoded, tower(normalise(pixels, SPEC)), atol=2e-5, rtol=0)


def test_chunks_change_nothing(monkeypatch):
    tower, (pixels, prompts) = VisualTower.from_open_clip(vit(), SPEC), draw(5)
    prompts.requires_grad_()
    whole = tower.encode(pixels, prompts)
    monkeypatch.setattr(towers, "IMAGES_PER_CHUNK", 2)
    chunked = tower.encode(pixels, prompts)
    torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(encoded.square().sum(), prompts)[0] for encoded in (whole, chunked)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near():
    tower, (pixels, prompts) = VisualTower.from_open_clip(vit(), SPEC), draw(4)
    rough = tower.to("cpu", torch.bfloat16).encode(pixels, prompts)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rough, tower.encode(pixels, prompts)).min() > 0.99


@pytest.mark.parametrize(
    "tower",
    [
        vit(pool_type="avg"),
        vit(block_type="custom"),
        vit(attentional_pool=True, attn_pooler_heads=4),
        ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=4, image_size=32, width=8),
        torch.nn.Linear(1, 1),
    ],
    ids=["average pooling", "other blocks", "attention pooling", "resnet", "other"],
)
def test_towers_that_cannot_be_prompted_are_refused(tower):
    with pytest.raises(BackboneError, match=f"need a plain ViT of open_clip.*of type {type(tower).__name__}"):
        VisualTower.from_open_clip(tower, SPEC)
