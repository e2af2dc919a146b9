"""PromptFL with a proximal term: neutral at 0, and its gradient by hand."""

from __future__ import annotations

import pytest
import torch
from three_clients import batch, distinct_params, gradients, learned, train

from fedpgp import methods
from fedpgp.core.errors import ConfigError

PLAIN = methods.create("promptfl", {"n_ctx": 3})


def test_prox_0_is_promptfl_bit_for_bit(bind, features, labels):
    frozen, images = bind(PLAIN), features["pooled"]
    plain, neutral = (
        train(method, frozen, images, labels)
        for method in (PLAIN, methods.create("prompt_prox", {"n_ctx": 3, "prox": 0}))
    )
    assert torch.equal(plain.params["ctx"], neutral.params["ctx"])
    assert torch.equal(plain.loss, neutral.loss)


def test_value_and_gradient_of_the_term(bind, features, labels):
    """3 / 2 ||d||^2 and 3 d, for d all 0.25, none at all and all -0.5, of 3 x 64 weights."""
    method, frozen = methods.create("prompt_prox", {"n_ctx": 3, "prox": 3}), bind(PLAIN)
    params, received = distinct_params(method, frozen)
    moved = torch.tensor([0.25, 0.0, -0.5]).view(3, 1, 1)
    params["ctx"] = received["ctx"] + moved
    received, images = {"ctx": params["ctx"][1].clone()}, batch(features["pooled"], labels)
    own = learned(params)
    loss, parts = method.loss(own, received, frozen, images)
    assert torch.allclose(parts["prox"], 1.5 * 192 * moved.flatten().square(), rtol=1e-5)
    torch.testing.assert_close(loss, parts["ce"] + parts["prox"])
    extra = gradients(loss, own)["ctx"] - gradients(PLAIN.loss(own, received, frozen, images)[0], own)["ctx"]
    torch.testing.assert_close(extra, (3 * moved).expand_as(extra), atol=1e-5, rtol=0)


def test_a_negative_weight_is_rejected():
    with pytest.raises(ConfigError, match=r"method prompt_prox: prox: .*greater than or equal to 0 .given: -1"):
        methods.create("prompt_prox", {"prox": -1})
