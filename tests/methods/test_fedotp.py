"""Transport plans: by hand, against the plain iteration in float64, and when iterations stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedpgp import methods
from fedpgp.core.errors import ConfigError
from fedpgp.methods.fedotp import plan


def settings(**given):
    return methods.create("fedotp", given).settings


def similarities(*shape, seed=0, spread=0.3):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)


def plain(sim, top_percent, eps, iterations, cot=True):
    """The published iteration for one image and class, in float64: kernel (N, M), scalings from 1."""
    kernel = np.exp(-(1 - sim.double().numpy()) / eps)
    prompts, patches = kernel.shape
    u, v = np.ones(patches), np.ones(prompts)
    for _ in range(iterations):
        u = 1 / patches / (v @ kernel)
        u = np.minimum(u, 1) if cot else u
        v = (top_percent if cot else 1) / prompts / (kernel @ u)
    return v[:, None] * kernel * u


def test_two_patches_and_two_prompts_by_hand():
    """Kernel [[1, 1/2], [1/2, 1]], top_percent 4/5: u = (1/2) / (3/2) = 1/3, v = (2/5) / (1/2) = 4/5.

    So T = 4/15 [[1, 1/2], [1/2, 1]], and so it stays: u = (1/2) / (6/5) = 5/12, v = (2/5) / (5/8) = 16/25.
    """
    sim = 1 + 0.1 * torch.tensor([[1, 0.5], [0.5, 1]]).log().view(1, 1, 1, 2, 2)
    for iterations in (1, 2):
        actual = plan(sim, settings(top_percent=0.8, max_iter=iterations, thresh=0))[0, 0, 0]
        assert torch.allclose(actual, torch.tensor([[4 / 15, 2 / 15], [2 / 15, 4 / 15]]), atol=1e-6)


@pytest.mark.parametrize("cot", [True, False])
@pytest.mark.parametrize("eps", [0.1, 0.01])
def test_equals_the_plain_iteration(eps, cot):
    """At eps 0.01 the entries of the plain kernel are e^-160 to e^-40, far below float32."""
    sim = similarities(1, 2, 3, 2, 9, spread=0.3)
    given = {"eps": eps, "top_percent": 0.7, "max_iter": 20, "thresh": 0, "transport": "cot" if cot else "sinkhorn"}
    actual = plan(sim, settings(**given))
    for image, label in np.ndindex(2, 3):
        expected = plain(sim[0, image, label], 0.7, eps, 20, cot)
        np.testing.assert_allclose(actual[0, image, label], expected, atol=2e-6)


def test_a_plan_holds_its_marginals():
    sim = similarities(2, 3, 4, 3, 10)
    for given, mass in (({"transport": "sinkhorn"}, 1.0), ({"top_percent": 0.6}, 0.6)):
        actual = plan(sim, settings(num_prompts=3, max_iter=2000, thresh=0, **given))
        torch.testing.assert_close(actual.sum(-1), torch.full((2, 3, 4, 3), mass / 3), atol=1e-5, rtol=0)
        assert (actual.sum(-2) <= 0.1 + 1e-4).all()
    assert (actual.sum(-2) < 0.09).any()  # some patches are left out in part


def test_with_much_entropy_everything_goes_everywhere():
    actual = plan(similarities(1, 1, 1, 2, 5), settings(eps=1e4, top_percent=0.5))
    assert torch.allclose(actual, torch.tensor(0.5 / 10), atol=1e-5)


def test_an_image_stops_by_itself_and_a_batch_as_one():
    """One image's similarities are equal, so its plan converges at once; the other's takes long."""
    sim = torch.stack([torch.full((2, 2, 6), 0.9), 0.9 + similarities(2, 2, 6, spread=0.1)])[None]
    alone = torch.cat([plan(sim[:, [image]], settings(thresh=0.02)) for image in range(2)], dim=1)
    torch.testing.assert_close(plan(sim, settings(thresh=0.02)), alone, atol=1e-7, rtol=0)
    as_batch = plan(sim, settings(thresh=0.02, stop="batch"))
    assert not torch.allclose(as_batch[0, 1], alone[0, 1], atol=1e-6)
    batch_alone = plan(sim[:, [1]], settings(thresh=0.02, stop="batch"))
    torch.testing.assert_close(batch_alone[0, 0], alone[0, 1], atol=1e-7, rtol=0)


def test_images_that_stop_at_many_times_have_the_plans_they_have_alone():
    """Images that have stopped are removed; the similarities of each image are spread more than those before."""
    spreads = torch.linspace(0.01, 0.3, 24).view(2, 12, 1, 1, 1)
    sim = 0.6 + spreads * similarities(2, 12, 3, 2, 6, spread=0.5)
    for transport in ("cot", "sinkhorn"):
        given = settings(transport=transport, max_iter=40)
        alone = [[plan(sim[[client], image : image + 1], given)[0, 0] for image in range(12)] for client in range(2)]
        expected = torch.stack([torch.stack(images) for images in alone])
        torch.testing.assert_close(plan(sim, given), expected, atol=1e-6, rtol=0)


def test_padding_does_not_stop_a_batch():
    sim = torch.stack([0.9 + similarities(2, 2, 6, spread=0.1), torch.full((2, 2, 6), 0.9)])[None]
    mask = torch.tensor([[True, False]])
    given = settings(thresh=0.02, stop="batch")
    torch.testing.assert_close(plan(sim, given, mask)[:, :1], plan(sim[:, :1], given), atol=1e-7, rtol=0)
    assert not torch.allclose(plan(sim, given)[:, :1], plan(sim[:, :1], given), atol=1e-6)


def test_no_gradient_passes_through_the_plan(bind, features):
    """The gradient of the score of one class is T, prompt by prompt, times that of the similarities."""
    method = methods.create("fedotp", {"n_ctx": 3})
    frozen = bind(method)
    text = torch.nn.functional.normalize(torch.randn(1, 2, 5, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    text.requires_grad_()
    tokens = features["patches"][None, :1]
    (gradient,) = torch.autograd.grad(method._score(tokens, text)[0, 0, 3], text)
    patches = torch.nn.functional.normalize(tokens[0, 0, 1:], dim=-1)
    sim = torch.einsum("knce,me->kcnm", text.detach(), patches)
    expected = plan(sim[:, None], method.settings)[0, 0, 3] @ patches
    torch.testing.assert_close(gradient[0, :, 3], expected, atol=1e-6, rtol=0)
    assert frozen.num_classes == 5


def test_the_class_token_is_not_a_patch(bind, features):
    method = methods.create("fedotp", {"n_ctx": 3})
    frozen = bind(method)
    params = {key: value[None] for key, value in method.init(frozen, torch.Generator().manual_seed(0)).items()}
    tokens = features["patches"][None].clone()
    before = method.classifier(params, frozen)(tokens)
    tokens[:, :, 0] = 7.0
    assert torch.equal(method.classifier(params, frozen)(tokens), before)
    tokens[:, :, 1] = 7.0
    assert not torch.allclose(method.classifier(params, frozen)(tokens), before, atol=1e-3)


def test_many_images_are_scored_a_few_at_a_time(bind, features, monkeypatch):
    method = methods.create("fedotp", {"n_ctx": 3})
    frozen = bind(method)
    params = {key: value[None] for key, value in method.init(frozen, torch.Generator().manual_seed(0)).items()}
    images = features["patches"][None]
    whole = method.classifier(params, frozen)(images)
    monkeypatch.setattr("fedpgp.methods.fedotp.SIMILARITIES_PER_CHUNK", 1)
    torch.testing.assert_close(method.classifier(params, frozen)(images), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("given", [{"num_prompts": 1}, {"top_percent": 1.2}, {"eps": 0}, {"transport": "emd"}], ids=str)
def test_invalid_settings_are_rejected(given):
    with pytest.raises(ConfigError, match=f"method fedotp: {next(iter(given))}: "):
        methods.create("fedotp", given)


def test_half_of_the_mass_halves_the_logits_of_equal_similarities():
    sim = torch.full((1, 1, 1, 2, 4), 0.5)
    scores = [float((plan(sim, settings(top_percent=part)) * sim).sum()) for part in (1.0, 0.5)]
    assert math.isclose(scores[0], 0.5, abs_tol=1e-6)
    assert math.isclose(scores[1], 0.25, abs_tol=1e-6)
