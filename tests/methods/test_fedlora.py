"""LoRA in the text tower: merged weights through open_clip's own encode_text, neutral values, blocks of clients."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from three_clients import COUNTS, NAMES, batch, distinct_params, gradients, learned, train

from fedpgp import methods
from fedpgp.clip import model
from fedpgp.clip.prompt_encoder import adapt
from fedpgp.clip.text_backbone import freeze
from fedpgp.clip.towers import Affine, Block
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import ConfigError

ALL = {"targets": ["q", "k", "v", "o"], "rank": 2, "alpha": 3.0}


def create(**settings):
    return methods.create("fedlora", {**ALL, **settings})


def noisy(method, frozen, clients=3):
    """Adapters with nonzero B, different for each client."""
    init, generator = method.init(frozen, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    return {key: value + 0.05 * torch.randn(clients, *value.shape, generator=generator) for key, value in init.items()}


def merged(backbone, method, params, client):
    """The same model with alpha / R B A added to its own weights."""
    clip, scale = deepcopy(backbone.model), method.settings.alpha / method.settings.rank
    for layer, block in enumerate(clip.transformer.resblocks):
        width = block.attn.embed_dim
        for place, target in enumerate("qkvo"):
            if f"{target}.A" not in params:
                continue
            delta = scale * params[f"{target}.B"][client, layer] @ params[f"{target}.A"][client, layer]
            weight = block.attn.out_proj.weight if target == "o" else block.attn.in_proj_weight
            rows = slice(None) if target == "o" else slice(place * width, (place + 1) * width)
            weight.data[rows] += delta
    return clip


@pytest.mark.parametrize("targets", [["q"], ["k", "o"], ["v", "q"], ["o"], ["q", "k", "v", "o"]])
def test_merged_weights_give_the_same_features(backbone, bind, targets):
    """Each client's adapters against plain encode_text of a merged model: features of unit length within 1e-5."""
    method = create(targets=targets)
    frozen = bind(method)
    params = noisy(method, frozen)
    text = frozen.adapted_template(method.adapters(params))
    tokens = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    for client in range(3):
        with torch.no_grad():
            oracle = merged(backbone, method, params, client).encode_text(tokens)
        torch.testing.assert_close(F.normalize(text[client], dim=-1), F.normalize(oracle, dim=-1), atol=1e-5, rtol=0)
        assert (oracle - frozen.template()).abs().max() > 1e-3


def test_merged_gradients_are_the_same(backbone, bind):
    """d(sum of weighted features)/dB = alpha / R (dW) A^T, with dW from the merged model's own weights."""
    method = create()
    frozen = bind(method)
    params = noisy(method, frozen, clients=1)
    own = learned(params)
    text = frozen.adapted_template(method.adapters(own))[0]
    wanted = torch.linspace(-1, 1, text.numel()).view_as(text)
    actual = gradients((text * wanted).sum(), own)
    clip = merged(backbone, method, params, 0).requires_grad_(True)
    tokens = backbone.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    (clip.encode_text(tokens) * wanted).sum().backward()
    for layer, block in enumerate(clip.transformer.resblocks):
        in_grads = dict(zip("qkv", block.attn.in_proj_weight.grad.chunk(3), strict=True))
        for target, grad in {**in_grads, "o": block.attn.out_proj.weight.grad}.items():
            by_hand = 1.5 * grad @ params[f"{target}.A"][0, layer].T
            torch.testing.assert_close(actual[f"{target}.B"][0, layer], by_hand, atol=1e-5, rtol=1e-4)


def test_b_of_zero_is_zero_shot(bind, features):
    method, zero = create(), methods.create("zero_shot", {})
    frozen = bind(method)
    params = {key: value[None] for key, value in method.init(frozen, torch.Generator().manual_seed(0)).items()}
    assert not any(params[f"{target}.B"].any() for target in "qkvo")
    logits, plain = (each.classifier(params, frozen)(features["pooled"][None]) for each in (method, zero))
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)


def test_an_adapted_map_by_hand():
    """W = [[1, 0], [0, 1], [2, 0]] for q, k, v of width 1, A_v = [1, 1], B_v = [3]: W_v + 3 [1, 1] = [5, 3]."""
    nothing = Affine(torch.ones(2), None)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    block = Block(nothing, Affine(weight, torch.tensor([0.0, 0.0, 1.0])), nothing, nothing, nothing, nothing)
    adapters = {"v": (torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 1), 3.0))}
    (changed,) = adapt([block], adapters)
    x = torch.tensor([[[10.0, 1.0]]])
    assert changed.qkv.linear(x).tolist() == [[[10.0, 1.0, 54.0]]]
    assert changed.qkv.rows(2).linear(x).tolist() == [[[54.0]]]
    assert changed.qkv.rows(0, 2).linear(x).tolist() == [[[10.0, 1.0]]]
    assert changed.out is block.out


def test_chunks_of_classes_change_nothing(backbone, bind, features, labels):
    method = create()
    frozen = bind(method)
    cut = freeze(backbone, NAMES, "a photo of a {}.", class_chunk=2).on(range(len(NAMES)))
    params = learned(noisy(method, frozen))
    images = batch(features["pooled"], labels)
    whole, parts = (method.loss(params, {}, each, images)[0] for each in (frozen, cut))
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)
    for left, right in zip(gradients(whole, params).values(), gradients(parts, params).values(), strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_a_block_of_clients_equals_each_alone(bind, features, labels, shared):
    method = create(shared=shared)
    frozen = bind(method)
    block = train(method, frozen, features["pooled"], labels)
    for client in range(len(COUNTS)):
        alone = train(method, frozen, features["pooled"], labels, [client])
        for key, value in alone.params.items():
            torch.testing.assert_close(block.params[key][client], value[0], atol=1e-5, rtol=0)


def test_the_setting_decides_what_is_shared(bind):
    for shared in (True, False):
        method = create(targets=["k", "q"], shared=shared)
        params, received = distinct_params(method, bind(method))
        assert received.keys() == method.shared_keys == ({"q.A", "q.B", "k.A", "k.B"} if shared else set())
        assert {key for phase in method.phases for key in phase.keys} == params.keys()


def test_novel_classes_and_bfloat16(bind, features):
    method = create()
    params = noisy(method, bind(method))
    images = features["pooled"][None, :4]
    exact, rough = (
        method.classifier(params, bind(method, ["old_shoe", "teapot"], dtype))(images)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact.shape == (3, 4, 2)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(exact, rough, atol=0.3, rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "method fedlora: rank: .*greater than or equal to 1"),
        ({"targets": ["q", "x"]}, "method fedlora: targets.1: Input should be 'q', 'k', 'v' or 'o'"),
        ({"targets": []}, "method fedlora: targets: .*at least 1"),
        ({"targets": ["q", "q"]}, "method fedlora: targets: each target once"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        create(**settings)


def test_a_rank_above_the_width_is_rejected(bind):
    method = create(rank=65)
    with pytest.raises(ConfigError, match=r"rank: 65 is more than the text tower's width; give method.rank=64 or less"):
        method.init(bind(method), torch.Generator())


def test_a_tower_of_openai_kind():
    """QuickGELU, whose factor is folded into the maps around it, leaves attention unchanged."""
    backbone = model.load(BackboneSettings(name="tiny", weights="random", activation="quick_gelu"))
    method = create()
    frozen = freeze(backbone, NAMES[:2], "a {}.").on(range(2))
    params = noisy(method, frozen, clients=1)
    tokens = backbone.tokenize(["a cat.", "a american bulldog."])
    with torch.no_grad():
        oracle = merged(backbone, method, params, 0).encode_text(tokens)
    torch.testing.assert_close(frozen.adapted_template(method.adapters(params))[0], oracle, atol=1e-5, rtol=0)
