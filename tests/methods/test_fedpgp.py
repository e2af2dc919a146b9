"""Neutral values, ablations by hand, and invalid ranks."""

from __future__ import annotations

import math

import pytest
import torch
from three_clients import batch, distinct_params, gradients, learned

from fedpgp import methods
from fedpgp.core.errors import ConfigError
from fedpgp.methods.base import HasGlobalModel
from fedpgp.methods.fedpgp import contrast, personal_prompt


def create(**given):
    return methods.create("fedpgp", {"n_ctx": 3, "rank": 2, **given})


PROMPTFL = methods.create("promptfl", {"n_ctx": 3})


@pytest.fixture
def frozen(bind):
    return bind(create())


def test_mu_0_is_cross_entropy(frozen, features, labels):
    params, received = distinct_params(create(), frozen)
    images = batch(features["pooled"], labels)
    neutral, none = learned(params), learned(params)
    loss, parts = create(mu=0).loss(neutral, received, frozen, images)
    torch.testing.assert_close(loss, parts["ce"], atol=0, rtol=0)
    without, _ = create(contrast="none").loss(none, received, frozen, images)
    torch.testing.assert_close(loss, without, atol=1e-5, rtol=0)
    actual, expected = gradients(loss, neutral), gradients(without, none)
    for key in params:
        torch.testing.assert_close(actual[key], expected[key], atol=1e-5, rtol=1e-4)


def test_no_personal_part_is_the_global_prompt(frozen, features, labels):
    """With V = 0 the model is PromptFL's, and so is the gradient of cross-entropy for the global prompt."""
    params, received = distinct_params(create(), frozen)
    images = batch(features["pooled"], labels)
    own, plain = learned(params | {"V": torch.zeros_like(params["V"])}), learned({"ctx": params["ctx"].squeeze(1)})
    actual = create().classifier(own, frozen)(images.features)
    torch.testing.assert_close(actual, PROMPTFL.classifier(plain, frozen)(images.features), atol=1e-4, rtol=0)
    actual, expected = create(mu=0).loss(own, received, frozen, images)[0], PROMPTFL.loss(plain, {}, frozen, images)[0]
    gradient = gradients(actual, own)["ctx"].squeeze(1)
    torch.testing.assert_close(gradient, gradients(expected, plain)["ctx"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("given", [{}, {"adaptation": "full_rank"}], ids=str)
def test_the_servers_own_model_has_no_personal_part(frozen, given):
    method = create(**given)
    params, _ = distinct_params(method, frozen)
    assert isinstance(method, HasGlobalModel)
    assert not torch.equal(personal_prompt(params), params["ctx"])
    assert torch.equal(personal_prompt(method.global_model(params)), params["ctx"])


def test_the_contrastive_terms_by_hand():
    """sim(z_G, z_C) = 3/5 and sim(z_G, z_i) = 0 for one class, 4/5 and 1 for the other; tau 1/2."""
    z_g = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    z_c = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    z_i = torch.tensor([[[[0.0, 3.0], [0.0, 1.0]]]])
    expected = {
        "full": (math.log1p(math.exp(-1.2)) + math.log1p(math.exp(0.4))) / 2,
        "no_positive": 0.5,
        "no_negative": 1 - 0.7,
    }
    for kind, value in expected.items():
        assert contrast(z_g, z_i, z_c, 0.5, kind).tolist() == pytest.approx([value], abs=1e-6)


@pytest.mark.parametrize(("kind", "moves"), [("full", True), ("no_positive", True), ("no_negative", False)])
def test_which_terms_reach_the_personal_part(frozen, features, labels, kind, moves):
    params, received = distinct_params(create(), frozen)
    own = learned(params)
    _, parts = create(contrast=kind).loss(own, received, frozen, batch(features["pooled"], labels))
    (ctx,) = torch.autograd.grad(parts["con"].sum(), own["ctx"], retain_graph=True)
    (u,) = torch.autograd.grad(parts["con"].sum(), own["U"], allow_unused=True, materialize_grads=True)
    assert ctx.abs().max() > 0
    assert bool(u.abs().max() > 0) == moves


def test_both_ways_to_adapt_start_as_said(frozen):
    low, full = (
        method.init(frozen, torch.Generator().manual_seed(0)) for method in (create(), create(adaptation="full_rank"))
    )
    assert {key: tuple(value.shape) for key, value in low.items()} == {
        "ctx": (1, 3, 64),
        "U": (1, 3, 2),
        "V": (1, 2, 64),
    }
    assert {key: tuple(value.shape) for key, value in full.items()} == {"ctx": (1, 3, 64), "delta": (1, 3, 64)}
    assert float(full["delta"].std()) == pytest.approx(0.02, rel=0.2)
    assert not create(init="lora").init(frozen, torch.Generator().manual_seed(0))["U"].any()


def test_further_sets_are_wrong_classes(frozen, features):
    """As in the authors' code: N C columns, of which the first C are the labels'."""
    method = create(num_prompts=3)
    params, _ = distinct_params(method, frozen)
    logits = method.classifier(params, frozen)(features["pooled"][None])
    assert logits.shape == (3, 19, 15)
    for index in range(3):
        one = {key: value[:, [index]] for key, value in params.items()}
        part = logits[..., 5 * index : 5 * index + 5]
        torch.testing.assert_close(part, create().classifier(one, frozen)(features["pooled"][None]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"rank": 4}, "rank: 4 is more than a context of 3 tokens x 64 can have; give method.rank=3 or less"),
        ({"rank": 5, "ctx_init": "a photo of a"}, "rank: 5 is more than a context of 4 tokens"),
        ({"rank": 65, "n_ctx": 70}, "rank: 65 is more than a context of 70 tokens x 64"),
    ],
)
def test_a_rank_that_the_context_cannot_have_is_rejected(bind, given, rule):
    method = create(**given)
    with pytest.raises(ConfigError, match=rule):
        method.init(bind(method), torch.Generator())


def test_no_rank_is_rejected():
    with pytest.raises(ConfigError, match=r"method fedpgp: rank: .*greater than or equal to 1"):
        create(rank=0)


def test_a_full_rank_part_has_no_rank_to_refuse(frozen):
    assert create(rank=99, adaptation="full_rank").init(frozen, torch.Generator()).keys() == {"ctx", "delta"}
