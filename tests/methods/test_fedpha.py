"""FedPHA: its terms and projector by hand, neutral values, and local prompts of several lengths."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from three_clients import COUNTS, batch, distinct_params, gradients, learned, train

from fedpgp import methods
from fedpgp.core.errors import ConfigError, DataError
from fedpgp.methods.base import Batch, DiffersByClient, HasGlobalModel
from fedpgp.methods.fedpha import weak_directions

COOP = methods.create("coop", {"n_ctx": 3})
LENGTHS = [2, 5, 3]


def create(**given):
    return methods.create("fedpha", {"n_ctx": 3, **given})


def test_the_terms_by_hand():
    """Two classes, whose features are the two rows of a prompt; the span of p_G is that of the first two axes.

    z(p_i) = (3/5, 0, 4/5), (0, 1, 0); z(p') = z(p_G) = (1, 0, 0), (0, 1, 0). Squared distances 0.16 + 0.64 and 0, so
    the pull is 0.8 / 6; the distances sqrt(0.8) and 0 are 1 - sqrt(0.8) and 1 short of the margin.
    """
    frozen = SimpleNamespace(encode=lambda prompts: prompts, logit_scale=1.0)
    params = {
        "ctx": torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]),
        "local": torch.tensor([[[3.0, 0.0, 4.0], [0.0, 5.0, 0.0]]]),
    }
    image = Batch(torch.tensor([[[0.0, 0.0, 9.0]]]), torch.tensor([[1]]), torch.tensor([[True]]))
    loss, parts = create(n_ctx=2, ratio=1).loss(params, {}, frozen, image)
    expected = {"ce": 1.171101, "ce_global": 0.693147, "pull": 0.8 / 6, "push": (2 - 0.8**0.5) / 2}
    assert {key: value.item() for key, value in parts.items()} == pytest.approx(expected, abs=1e-5)
    assert loss.item() == pytest.approx(sum(expected.values()), abs=1e-5)


def test_the_projector_by_hand():
    """Rows 3 e_2, 1 e_0 and 2 e_1: without the strongest, e_0 and e_1 are left; all without a cut; none beyond."""
    prompt = torch.tensor([[[0.0, 0, 3, 0], [1, 0, 0, 0], [0, 2, 0, 0]]])
    for ratio, diagonal in ((0.5, [1, 1, 0, 0]), (0.1, [1, 0, 0, 0]), (1, [1, 1, 1, 0])):
        expected = torch.diag(torch.tensor(diagonal, dtype=torch.float32))
        torch.testing.assert_close(weak_directions(prompt, ratio)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("length", "cut"), [(16, 3), (10, 1), (20, 3), (5, 0)])
def test_the_cut_is_rounded_down_as_in_the_authors_code(length, cut):
    prompt = torch.randn(1, length, 64, generator=torch.Generator().manual_seed(0))
    assert float(weak_directions(prompt, 0.8)[0].trace()) == pytest.approx(length - cut, abs=1e-3)


def test_gradient_of_the_projector():
    prompt = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: weak_directions(value, 0.5), prompt.requires_grad_())


def test_without_pull_and_push_it_is_coop_and_promptfl(bind, features, labels):
    """A local prompt within the span of the global one is not changed by the projection; margin 0 has no push."""
    method = create(ratio=1, margin=0)
    frozen, images = bind(method), batch(features["pooled"], labels)
    params, received = distinct_params(method, frozen)
    params["local"] = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(5)) @ params["ctx"]
    own, alone = learned(params), [learned({"ctx": params[key]}) for key in ("ctx", "local")]
    loss, parts = method.loss(own, received, frozen, images)
    losses = [COOP.loss(one, {}, frozen, images)[0] for one in alone]
    assert parts["pull"].max() < 1e-9
    assert not parts["push"].any()
    torch.testing.assert_close(loss, losses[0] + losses[1], atol=1e-5, rtol=0)
    found = gradients(loss, own)
    for key, one, expected in zip(("ctx", "local"), alone, losses, strict=True):
        torch.testing.assert_close(found[key], gradients(expected, one)["ctx"], atol=2e-5, rtol=1e-3)


def test_equal_prompts_have_finite_gradients(bind, features, labels):
    """The distance of the push is 0 there."""
    method = create()
    params, received = distinct_params(method, bind(method))
    own = learned({**params, "local": params["ctx"]})
    loss, parts = method.loss(own, received, bind(method), batch(features["pooled"], labels))
    torch.testing.assert_close(parts["push"], torch.ones(3), atol=1e-5, rtol=0)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, own).values())


def test_a_client_whose_prompt_is_not_finite_stops_no_other(bind, features, labels):
    method = create()
    frozen, images = bind(method), batch(features["pooled"], labels)
    params, received = distinct_params(method, frozen)
    broken = params["ctx"].clone()
    broken[1] = float("nan")
    own, sound = learned({**params, "ctx": broken}), learned(params)
    loss, expected = (method.loss(one, received, frozen, images)[0] for one in (own, sound))
    assert loss.isfinite().tolist() == [True, False, True]
    found, wanted = gradients(torch.where(loss.isfinite(), loss, 0.0), own), gradients(expected, sound)
    for key in wanted:
        torch.testing.assert_close(found[key][[0, 2]], wanted[key][[0, 2]], atol=1e-5, rtol=0)


def test_lengths_that_are_all_equal_change_no_bit(bind, features, labels):
    plain, several = create(), create(local_lengths=[3])
    one, other = (train(method, bind(method), features["pooled"], labels) for method in (plain, several))
    for key, value in one.params.items():
        assert torch.equal(value, other.params[key])
    assert torch.equal(one.loss, other.loss)


def test_each_length_is_a_prompt_of_its_own(bind, features, labels):
    """Client i classifies with CoOp's prompt of its L_i tokens, and trains as one alone; no padding learns."""
    method = create(local_lengths=LENGTHS)
    frozen, images = bind(method), features["pooled"][None]
    params, _ = distinct_params(method, frozen)
    assert params["length"].flatten().tolist() == LENGTHS
    logits = method.classifier(params, frozen)(images)
    trained = train(method, frozen, features["pooled"], labels).params
    assert torch.equal(trained["length"], params["length"])
    for client, length in enumerate(LENGTHS):
        short = {"ctx": params["local"][client, :length][None]}
        torch.testing.assert_close(logits[client], COOP.classifier(short, frozen)(images)[0], atol=1e-4, rtol=0)
        assert (trained["local"][client, :length] != params["local"][client, :length]).all()
        assert not trained["local"][client, length:].any()


def test_clients_take_the_lengths_in_turn(bind):
    method = create(local_lengths=LENGTHS)
    assert isinstance(method, DiffersByClient)
    start = method.init(bind(method), torch.Generator().manual_seed(0))
    personal = {key: start[key] for key in ("local", "length")}
    assert (start["ctx"].shape, start["local"].shape) == ((3, 64), (5, 64))
    for client, length in enumerate([*LENGTHS, *LENGTHS]):
        own = method.personal_of(client, personal)
        assert own["length"] == length
        assert torch.equal(own["local"][:length], start["local"][:length])
        assert not own["local"][length:].any()
        assert own["local"].shape == (5, 64)
    assert create().personal_of(1, personal) == personal


@pytest.mark.parametrize("given", [{}, {"local_lengths": LENGTHS}, {"local_lengths": [1, 2, 2]}], ids=str)
def test_the_servers_own_model_is_the_global_prompt(bind, features, given):
    method = create(**given)
    frozen, images = bind(method), features["pooled"][None]
    params, _ = distinct_params(method, frozen)
    assert isinstance(method, HasGlobalModel)
    alone = method.classifier(method.global_model(params), frozen)(images)
    torch.testing.assert_close(alone, COOP.classifier(params, frozen)(images), atol=1e-4, rtol=0)
    assert (method.classifier(params, frozen)(images) - alone).abs().max() > 0.01
    assert len(alone) == len(COUNTS)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"ratio": 0}, "ratio: .*greater than 0"),
        ({"margin": -1}, "margin: .*equal to 0"),
        ({"local_lengths": []}, "local_lengths: .*at least 1"),
        ({"local_lengths": [4, 0]}, "local_lengths.1: .*equal to 1"),
    ],
)
def test_values_that_cannot_be(given, rule):
    with pytest.raises(ConfigError, match=f"method fedpha: {rule}"):
        create(**given)


@pytest.mark.parametrize("given", [{"n_ctx": 75}, {"local_lengths": [2, 75]}], ids=str)
def test_a_prompt_that_is_too_long_is_rejected(bind, given):
    with pytest.raises(DataError, match="longer than the 77 tokens"):
        create(**given).init(bind(create()), torch.Generator())
