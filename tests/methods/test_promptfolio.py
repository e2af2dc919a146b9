"""PromptFolio: its two extremes, the mixture by hand, and the server's own model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from three_clients import batch, distinct_params, gradients, learned

from fedpgp import methods
from fedpgp.core.errors import ConfigError
from fedpgp.methods.base import HasGlobalModel


def create(**given):
    return methods.create("promptfolio", {"n_ctx": 3, **given})


@pytest.mark.parametrize(
    ("theta", "key", "other", "name"), [(0, "ctx", "local", "promptfl"), (1, "local", "ctx", "coop")]
)
def test_one_prompt_alone_is_promptfl_or_coop_bit_for_bit(bind, features, labels, theta, key, other, name):
    method, plain = create(theta=theta), methods.create(name, {"n_ctx": 3})
    frozen, images = bind(method), batch(features["pooled"], labels)
    params, received = distinct_params(method, frozen)
    both, one = learned(params), learned({"ctx": params[key]})
    loss, expected = method.loss(both, received, frozen, images)[0], plain.loss(one, {}, frozen, images)[0]
    assert torch.equal(loss, expected)
    found = gradients(loss, both)
    assert torch.equal(found[key], gradients(expected, one)["ctx"])
    assert not found[other].any()


def test_the_mixture_by_hand():
    """z = 3/4 (1, 0) + 1/4 (0, 1), not of length 1; the image (3, 4) / 5 gives 10 (0.45 + 0.2) = 6.5."""
    frozen = SimpleNamespace(encode=lambda ctx, position: ctx, logit_scale=10.0)
    params = {"ctx": torch.tensor([[[2.0, 0.0]]]), "local": torch.tensor([[[0.0, 3.0]]])}
    images = torch.tensor([[[6.0, 8.0]]])
    assert create(theta=0.25).classifier(params, frozen)(images).item() == pytest.approx(6.5, abs=1e-5)


def test_the_servers_own_model_is_the_global_prompt(bind, features):
    method, plain = create(), methods.create("promptfl", {"n_ctx": 3})
    frozen = bind(method)
    params, _ = distinct_params(method, frozen)
    images = features["pooled"][None]
    assert isinstance(method, HasGlobalModel)
    alone = method.classifier(method.global_model(params), frozen)(images)
    torch.testing.assert_close(alone, plain.classifier(params, frozen)(images), atol=1e-5, rtol=0)
    assert (method.classifier(params, frozen)(images) - alone).abs().max() > 0.01


def test_both_prompts_start_apart_or_from_the_same_words(bind):
    for given, equal in (({}, False), ({"ctx_init": "a photo of a"}, True)):
        method = create(**given)
        start = method.init(bind(method), torch.Generator().manual_seed(0))
        assert torch.equal(start["ctx"], start["local"]) == equal


@pytest.mark.parametrize("theta", [-0.1, 1.1])
def test_a_theta_that_is_no_share_is_rejected(theta):
    with pytest.raises(ConfigError, match=r"method promptfolio: theta: .*than or equal to [01]"):
        create(theta=theta)
