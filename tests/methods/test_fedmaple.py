"""Deep prompts: rejected settings, initial words, and the coupling of the two towers."""

from __future__ import annotations

import pytest
import torch
from three_clients import batch, distinct_params, gradients, learned

from fedpgp import methods
from fedpgp.core.errors import ConfigError
from fedpgp.methods.fedmaple import couple


def create(**settings):
    return methods.create("fedmaple", {"depth": 2, **settings})


def init(method, frozen):
    return method.init(frozen, torch.Generator().manual_seed(0))


def test_words_start_the_context_and_the_rest_of_them_stays(bind):
    method = create(n_ctx=2, ctx_init="a photo of a")
    frozen = bind(method)
    params = init(method, frozen)
    assert torch.equal(params["ctx"][0], frozen.word_vectors("a photo of a")[:2])
    assert params["ctx"][1].std() == pytest.approx(0.02, rel=0.3)
    # with the words' own tokens for a context, and none learned deeper, the prompt is the hand-written one
    text = frozen.encode(params["ctx"][None, 0], before_name=frozen.token_ids("a photo of a")[2:])
    torch.testing.assert_close(text[0], frozen.template(), atol=1e-5, rtol=0)


def test_the_coupling_by_hand():
    """F_0 doubles the one token (3, 4) and adds 1; F_1 swaps it."""
    params = {
        "ctx": torch.tensor([[[[3.0, 4.0]], [[5.0, 6.0]]]]),
        "coupling.weight": torch.tensor([[[[2.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]]]]),
        "coupling.bias": torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]),
    }
    assert couple(params).tolist() == [[[[7.0, 9.0]], [[6.0, 5.0]]]]


def test_text_prompts_learn_through_both_towers(bind, features, labels):
    """Without coupling (weights 0) the gradient of the text prompts is that of the text tower alone."""
    method = create(ctx_init=None)
    frozen, images = bind(method), batch(features["pixels"], labels)
    params, received = distinct_params(method, frozen)
    full, cut = (
        gradients(method.loss(own, received, frozen, images)[0], own)["ctx"]
        for own in (learned(params), learned(params | {"coupling.weight": torch.zeros_like(params["coupling.weight"])}))
    )
    assert ((full - cut).abs().amax((2, 3)) > 1e-6).all()  # in every client and layer


def test_more_layers_than_the_backbone_has_are_rejected(bind):
    method = create(depth=3)
    with pytest.raises(ConfigError, match="method fedmaple: depth: 3 is more than the 2 layers of the backbone"):
        init(method, bind(method))


def test_more_tokens_than_the_words_have_are_rejected(bind):
    method = create(n_ctx=5, ctx_init="a photo of a")
    with pytest.raises(ConfigError, match="n_ctx: 5 is more than the 4 tokens of ctx_init 'a photo of a'"):
        init(method, bind(method))
    assert init(create(n_ctx=5, ctx_init=None), bind(create())) is not None


def test_the_image_tower_must_have_been_asked_for(bind):
    frozen = bind(methods.create("promptfl", {}))
    with pytest.raises(TypeError, match="only methods with `required_towers` text and image"):
        init(create(ctx_init=None), frozen)


def test_no_depth_is_three_quarters_of_the_layers(bind):
    from fedpgp.methods.size import parameter_counts

    method = create(depth=None)
    assert len(init(method, bind(method))["ctx"]) == 1  # of 2
    assert parameter_counts(method) == parameter_counts(create(depth=9))  # of 12
