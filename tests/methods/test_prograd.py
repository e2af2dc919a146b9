"""ProGrad: the projection by hand, clients without a conflict, and what its two backward passes keep."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from three_clients import NAMES, batch, distinct_params, gradients, learned, train

from fedpgp import methods
from fedpgp.clip.text_backbone import freeze
from fedpgp.core.errors import ConfigError
from fedpgp.federation.worker import kept_for_backward
from fedpgp.methods.prograd import projected

PLAIN = methods.create("promptfl", {"n_ctx": 3})


def create(**given):
    return methods.create("prograd", {"n_ctx": 3, **given})


@pytest.fixture
def frozen(bind):
    return bind(PLAIN)


@pytest.fixture
def images(features, labels):
    return batch(features["pooled"], labels)


def teachers(frozen, images, best):
    """The same images with the teacher's best or its worst class as their labels."""
    logits = methods.create("zero_shot", {}).classifier({}, frozen)(images.features)
    return dataclasses.replace(images, labels=logits.argmax(-1) if best else logits.argmin(-1))


def test_the_projection_by_hand():
    """<a, b> = -3 and |b|^2 = 1: all of a's first entry goes, or half; no conflict for 7 and for b = 0."""
    a = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]], [[3.0, 4.0]]])
    b = torch.tensor([[[-1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]])
    for strength, first in ((1.0, [0.0, 4.0]), (0.5, [1.5, 4.0]), (0.0, [3.0, 4.0])):
        g, conflict = projected(a, b, strength)
        assert g.squeeze(1).tolist() == [first, [3.0, 4.0], [3.0, 4.0]]
        assert conflict.tolist() == [True, False, False]


def test_strength_0_is_promptfl_bit_for_bit(frozen, features, labels):
    for given in ({}, {"guidance": "distillation"}):
        plain, neutral = (
            train(method, frozen, features["pooled"], labels) for method in (PLAIN, create(strength=0, **given))
        )
        assert torch.equal(plain.params["ctx"], neutral.params["ctx"])
        assert torch.equal(plain.loss, neutral.loss)


@pytest.mark.parametrize("best", [True, False])
def test_only_a_client_in_conflict_differs_from_promptfl(frozen, images, best):
    """Labels that are the teacher's best classes agree with it, its worst ones conflict."""
    images = teachers(frozen, images, best)
    params, received = distinct_params(PLAIN, frozen)
    guided, plain = learned(params), learned(params)
    loss, parts = create().loss(guided, received, frozen, images)
    expected, _ = PLAIN.loss(plain, received, frozen, images)
    assert torch.equal(loss, expected)
    assert parts["conflict"].tolist() == [float(not best)] * 3
    g, a = gradients(loss, guided)["ctx"], gradients(expected, plain)["ctx"]
    assert torch.equal(g, a) == best


def test_a_projected_gradient_is_orthogonal_to_the_teachers(frozen, images):
    images = teachers(frozen, images, best=False)
    params, received = distinct_params(PLAIN, frozen)
    own, other = learned(params), learned(params)
    g = gradients(create().loss(own, received, frozen, images)[0], own)["ctx"]
    _, parts = create(guidance="distillation").loss(other, received, frozen, images)
    b = gradients(parts["kl"], other)["ctx"]
    assert torch.cosine_similarity(g.flatten(1), b.flatten(1)).abs().max() < 1e-4


def test_a_client_without_an_image_has_a_gradient_of_0(frozen, images):
    mask = images.mask.clone()
    mask[1] = False
    params, received = distinct_params(PLAIN, frozen)
    own = learned(params)
    loss, parts = create().loss(own, received, frozen, dataclasses.replace(images, mask=mask))
    gradient = gradients(loss, own)["ctx"]
    assert not gradient[1].any()
    assert gradient[0].any()
    assert (loss[1], parts["kl"][1], parts["conflict"][1]) == (0, 0, 0)


def test_chunks_of_classes_change_nothing(backbone, frozen, images):
    """Each of the two backward passes computes the activations of a chunk again."""
    cut = freeze(backbone, NAMES, "a photo of a {}.", class_chunk=2).on(range(len(NAMES)))
    images = teachers(frozen, images, best=False)
    params, received = distinct_params(PLAIN, frozen)
    found = []
    for bound in (frozen, cut):
        own = learned(params)
        found.append(gradients(create().loss(own, received, bound, images)[0], own)["ctx"])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def test_its_memory_is_measured_like_that_of_promptfl(frozen, images):
    """The activations of the one forward pass, although the passes backwards have already used them."""
    params, received = distinct_params(PLAIN, frozen)

    def kept(method):
        frozen.template()
        return kept_for_backward(lambda: method.loss(learned(params), received, frozen, images)[0], set())

    assert kept(PLAIN) <= kept(create()) <= 1.1 * kept(PLAIN)


def test_the_loss_without_gradients(frozen, images):
    params, received = distinct_params(PLAIN, frozen)
    with torch.no_grad():
        loss, _ = create().loss(params, received, frozen, images)
    assert torch.equal(loss, PLAIN.loss(params, received, frozen, images)[0])
    assert not loss.requires_grad


@pytest.mark.parametrize(
    ("given", "rule"), [({"strength": -1}, "strength: .*equal to 0"), ({"tau": 0}, "tau: .*than 0")]
)
def test_values_that_cannot_be(given, rule):
    with pytest.raises(ConfigError, match=f"method prograd: {rule}"):
        create(**given)
