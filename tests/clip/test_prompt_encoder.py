"""The shared-prefix prompt encoder against open_clip's own encode_text, in values and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from fedpgp.clip import prompt_encoder
from fedpgp.clip.model import Backbone, ImageSpec
from fedpgp.clip.prompt_encoder import arrange
from fedpgp.clip.text_backbone import freeze
from fedpgp.clip.towers import Affine
from fedpgp.core.errors import DataError

NAMES = ["cat", "american_bulldog", "staffordshire_bull_terrier", "dog", "wine glass", "o'hare", "x-ray 42"]
L, D = 5, 32


def clip(seed=0, **changes):
    text = {"context_length": 77, "vocab_size": 49408, "width": D, "heads": 4, "layers": 3, **changes.pop("text", {})}
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, **changes).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and scales count too
    return model


def backbone(model):
    tokenize = SimpleTokenizer(context_length=model.context_length)
    image = ImageSpec(16, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest")
    return Backbone("test", model, image, tokenize, 10.0, "gelu", "0")


@pytest.fixture(scope="module")
def model():
    return clip(quick_gelu=True)


def oracle(model, names, ctx, position):
    """encode_text of one client's prompts (C, E): placeholders are tokenised, then their embeddings replaced.

    ctx is (L, D), or (C, L, D) if class-specific.
    """
    tokenize = SimpleTokenizer(context_length=model.context_length)
    features = []
    for index, name in enumerate(name.replace("_", " ") for name in names):
        own = ctx if ctx.dim() == 2 else ctx[index]
        length, before = len(own), {"end": len(own), "middle": len(own) // 2, "front": 0}[position]
        fill = ["x"] * length
        tokens = tokenize([" ".join([*fill[:before], name, *fill[before:]]) + "."])
        name_length = int(tokenize([name]).argmax()) - 1
        places = [1 + i if i < before else 1 + i + name_length for i in range(length)]
        embedded = model.token_embedding(tokens)
        embedded = embedded.index_put((torch.zeros(length, dtype=torch.long), torch.tensor(places)), own)
        x = embedded + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))[0, int(tokens.argmax())]
        features.append(x @ model.text_projection)
    return torch.stack(features)


@pytest.mark.parametrize("specific", [False, True], ids=["generic", "class-specific"])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_equals_encode_text_in_value_and_gradient(model, position, specific):
    ctx = torch.randn(3, *([len(NAMES)] if specific else []), L, D, generator=torch.Generator().manual_seed(1))
    ours, theirs = ctx.clone().requires_grad_(), ctx.clone().requires_grad_()
    encoded = freeze(backbone(model), NAMES, "a {}.").on(range(len(NAMES))).encode(ours, position)
    plain = torch.stack([oracle(model, NAMES, one, position) for one in theirs])
    torch.testing.assert_close(encoded, plain, atol=1e-5, rtol=0)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((encoded * weights).sum(), ours)
    (expected,) = torch.autograd.grad((plain * weights).sum(), theirs)
    assert (gradient - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    ("position", "depth", "chunk"), [("end", 2, None), ("end", 3, 3), ("middle", 3, None), ("front", 2, 3)]
)
def test_tokens_learned_for_deeper_layers(model, position, depth, chunk):
    """Against the tower run block by block on prompts of 77 tokens, with fixed words before the name."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randn(2, depth, L, D, generator=generator, requires_grad=True)
    frozen = freeze(backbone(model), NAMES, "a {}.", ["big red"], class_chunk=chunk).on(range(len(NAMES)))
    words = frozen.token_ids("big red")
    encoded = frozen.encode(prompts[:, 0], position, deep=prompts[:, 1:], before_name=words)
    tokenize = SimpleTokenizer(context_length=model.context_length)
    plain = torch.empty_like(encoded)
    for client, (row, name) in itertools.product(range(2), enumerate(name.replace("_", " ") for name in NAMES)):
        before, fill = {"end": L, "middle": L // 2, "front": 0}[position], ["x"] * L
        tokens = tokenize([" ".join([*fill[:before], f"big red {name}", *fill[before:]]) + "."])
        length = int(tokenize([f"big red {name}"]).argmax()) - 1
        places = torch.tensor([1 + i if i < before else 1 + i + length for i in range(L)])
        x = model.token_embedding(tokens)
        for layer, block in enumerate(model.transformer.resblocks):
            if layer < depth:
                x = x.index_put((torch.zeros(L, dtype=torch.long), places), prompts[client, layer])
            x = block(x + model.positional_embedding if layer == 0 else x, attn_mask=model.attn_mask)
        plain[client, row] = model.ln_final(x)[0, int(tokens.argmax())] @ model.text_projection
    torch.testing.assert_close(encoded, plain, atol=1e-5, rtol=0)
    weights = torch.randn(plain.shape, generator=generator)
    (gradient,) = torch.autograd.grad((encoded * weights).sum(), prompts)
    (expected,) = torch.autograd.grad((plain * weights).sum(), prompts)
    assert (gradient - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"text": {"ls_init_value": 0.3}},
        {"text": {"proj_bias": True}},
        {"text": {"act_kwargs": {"approximate": "tanh"}}},
    ],
    ids=["layer scale", "projection with bias", "tanh gelu"],
)
def test_hand_written_prompts_of_other_towers(changes):
    model = clip(**changes)
    names = ["cat", "american bulldog", "dog"]
    ours = freeze(backbone(model), names, "a photo of a {}, a pet.").on(range(3)).template()
    tokens = SimpleTokenizer()([f"a photo of a {name}, a pet." for name in names])
    torch.testing.assert_close(ours, model.encode_text(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_class_chunks_change_nothing(model, chunk, position):
    ctx = torch.randn(2, L, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    whole, chunked = (
        freeze(backbone(model), NAMES, "a {}.", class_chunk=size).on(range(len(NAMES))).encode(ctx, position)
        for size in (None, chunk)
    )
    torch.testing.assert_close(whole, chunked, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(encoded.square().sum(), ctx)[0] for encoded in (whole, chunked)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_a_subset_of_the_classes_in_another_order(model):
    frozen = freeze(backbone(model), NAMES, "a {}.")
    ctx = torch.randn(1, L, D, generator=torch.Generator().manual_seed(1))
    everything, some = frozen.on(range(len(NAMES))).encode(ctx), frozen.on([4, 0]).encode(ctx)
    torch.testing.assert_close(some, everything[:, [4, 0]], atol=1e-5, rtol=0)


def test_one_class_alone(model):
    ctx = torch.randn(1, L, D, generator=torch.Generator().manual_seed(1))
    alone = freeze(backbone(model), ["cat"], "a {}.").on([0]).encode(ctx)
    torch.testing.assert_close(alone[0], oracle(model, ["cat"], ctx[0], "end"), atol=1e-5, rtol=0)


def test_bfloat16_stays_near(model):
    ctx = torch.randn(2, L, D, generator=torch.Generator().manual_seed(1))
    frozen = freeze(backbone(model), NAMES, "a {}.")
    exact = frozen.on(range(len(NAMES))).encode(ctx)
    rough = frozen.to("cpu", torch.bfloat16).on(range(len(NAMES))).encode(ctx)
    assert rough.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=-1).min() > 0.999


def test_what_prompts_share_is_laid_out_once():
    """start ctx ctx, then 5 6 . end, 5 7 . end and 5 . end: the first 5 stands once, the full stops apart."""
    start, end, dot = 0, 1, 8
    (layout,) = arrange(
        [[start, -1, -2, 5, 6, dot, end], [start, -1, -2, 5, 7, dot, end], [start, -1, -2, 5, dot, end]]
    )
    assert layout.learned.tolist() == [0, 1]
    assert layout.fixed.tolist() == [start, 5, 6, dot, end, 7, dot, end, dot, end]
    assert layout.positions.tolist() == [1, 2, 0, 3, 4, 5, 6, 4, 5, 6, 4, 5]
    assert layout.ends.tolist() == [6, 9, 11]
    seen = [layout.sees[node].nonzero().flatten().tolist() for node in (0, 2, 6, 9, 11)]
    assert seen == [[0, 2], [2], [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8, 9], [0, 1, 2, 3, 10, 11]]


def test_many_classes_make_several_trees():
    """300 names of one token are 904 nodes: four trees of 75 classes, each with start and context of its own.

    229 nodes are filled up to a multiple of four, with nodes that nobody else sees.
    """
    layouts = arrange([[0, -1, -2, -3, 5 + name, 3, 1] for name in range(300)])
    assert [len(layout.ends) for layout in layouts] == [75] * 4
    assert [len(layout.positions) for layout in layouts] == [4 + 75 * 3 + 3] * 4
    for layout in layouts:
        assert torch.equal(layout.sees[:, -3:].nonzero(), torch.tensor([[229, 0], [230, 1], [231, 2]]))


def test_a_name_that_does_not_fit_is_named(model):
    frozen = freeze(backbone(model), ["cat", "dog " * 70], "{}")
    with pytest.raises(DataError, match=r"class 'dog dog .*77 tokens of the tower"):
        frozen.on([0, 1]).encode(torch.zeros(1, 16, D))
    with pytest.raises(DataError, match="longer than the 77 tokens"):
        freeze(backbone(model), ["dog " * 80], "{}")


@pytest.mark.parametrize("bias", [torch.tensor([10.0, 20.0]), None])
def test_a_map_with_its_features_in_rows(bias):
    affine, x = Affine(torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), bias), torch.arange(6.0).view(2, 3)
    added = [0, 0] if bias is None else [10, 20]
    assert affine.transposed(x).tolist() == [[4 + added[0], 13 + added[0]], [3 + added[1], 12 + added[1]]]
    assert torch.equal(affine.transposed(x).T, affine.linear(x))


def test_the_attention_of_gpus_gives_the_same_features_and_gradients(model, monkeypatch):
    ctx = torch.randn(3, L, D, generator=torch.Generator().manual_seed(1))

    def features_and_gradient():
        own = ctx.clone().requires_grad_()
        features = freeze(backbone(model), NAMES, "a {}.").on(range(len(NAMES))).encode(own)
        return features.detach(), torch.autograd.grad(features.square().sum(), own)[0]

    expected = features_and_gradient()
    monkeypatch.setattr(prompt_encoder, "attention", prompt_encoder.fused_attention)
    for found, plain in zip(features_and_gradient(), expected, strict=True):
        assert float(plain.norm()) > 0
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)
