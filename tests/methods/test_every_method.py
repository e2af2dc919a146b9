"""Properties of every method."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from three_clients import COUNTS, NAMES, distinct_params, gradients, learned, step, train

from fedpgp import methods
from fedpgp.methods import METHODS
from fedpgp.methods.base import NeedsAllClasses

CASES = {
    "coop": ("coop", {"n_ctx": 3}),
    "coop, class-specific": ("coop", {"n_ctx": 3, "class_specific": True}),
    "promptfl, middle": ("promptfl", {"n_ctx": 3, "position": "middle"}),
    "prompt_prox": ("prompt_prox", {"n_ctx": 3, "prox": 2}),
    "fedcocoop": ("fedcocoop", {"n_ctx": 3}),
    "fedcocoop, words in front": ("fedcocoop", {"ctx_init": "a photo of a", "position": "front"}),
    "fedmaple": ("fedmaple", {"depth": 2}),
    "fedmaple, shallow": ("fedmaple", {"depth": 1, "ctx_init": None}),
    "dp_fpl": ("dp_fpl", {"n_ctx": 3, "rank": 2}),
    "dp_fpl, noise": ("dp_fpl", {"n_ctx": 3, "rank": 2, "epsilon": 8, "clip_norm": 0.5}),
    "fedmgp": ("fedmgp", {"groups": 3}),
    "fedmgp, released": ("fedmgp", {"groups": 2, "ctx_init": None, "n_ctx_image": 3, "diversity": "released_l1"}),
    "fedotp": ("fedotp", {"n_ctx": 3}),
    "fedotp, as the authors": ("fedotp", {"n_ctx": 3, "stop": "batch"}),
    "fedotp, balanced": ("fedotp", {"n_ctx": 3, "transport": "sinkhorn", "num_prompts": 3}),
    "fedpgp": ("fedpgp", {"n_ctx": 3, "rank": 2}),
    "fedpgp, no positive": ("fedpgp", {"n_ctx": 3, "rank": 2, "contrast": "no_positive"}),
    "fedpgp, no negative": ("fedpgp", {"n_ctx": 3, "rank": 2, "contrast": "no_negative"}),
    "fedpgp, no contrast": ("fedpgp", {"n_ctx": 3, "rank": 2, "contrast": "none"}),
    "fedpgp, full rank": ("fedpgp", {"n_ctx": 3, "adaptation": "full_rank", "position": "front"}),
    "kgcoop": ("kgcoop", {"n_ctx": 3}),
    "kgcoop, class-specific": ("kgcoop", {"n_ctx": 3, "class_specific": True}),
    "prograd, middle": ("prograd", {"n_ctx": 3, "position": "middle"}),
    "prograd, class-specific": ("prograd", {"n_ctx": 3, "class_specific": True, "tau": 2}),
    "prograd, distillation": ("prograd", {"n_ctx": 3, "guidance": "distillation"}),
    "promptfolio": ("promptfolio", {"n_ctx": 3}),
    "fedpha": ("fedpha", {"n_ctx": 3}),
    "fedpha, local lengths": ("fedpha", {"n_ctx": 3, "local_lengths": [2, 5, 3]}),
    "pfedmoap": ("pfedmoap", {"n_ctx": 3, "num_experts": 3}),
    "pfedmoap, random, wide gating": (
        "pfedmoap",
        {"n_ctx": 3, "selection": "random", "num_experts": 2, "gating_dim": 64},
    ),
    "fedpgp, two sets": ("fedpgp", {"n_ctx": 3, "rank": 2, "num_prompts": 2, "personal_lr": 0.01}),
    "fedtpg": ("fedtpg", {"n_ctx": 3}),
    "fedtpg, two blocks": ("fedtpg", {"n_ctx": 3, "depth": 2, "heads": 2}),
}


@pytest.fixture(params=CASES)
def method(request):
    name, settings = CASES[request.param]
    return methods.create(name, settings)


def test_a_block_of_clients_equals_each_alone(method, bind, features, labels):
    """With 6, 4 and 9 images: some run out of batches, and the last batches are padded."""
    frozen, images = bind(method), features[method.image_inputs]
    block = train(method, frozen, images, labels)
    for client in range(len(COUNTS)):
        alone = train(method, frozen, images, labels, [client])
        assert alone.loss[0].isfinite()
        torch.testing.assert_close(block.loss[client], alone.loss[0], atol=1e-5, rtol=0)
        for key, value in alone.params.items():
            torch.testing.assert_close(block.params[key][client], value[0], atol=1e-5, rtol=0)


def test_every_parameter_learns(method, bind, features, labels):
    """All in some phase, all with a gradient, and a client's loss depends on its own parameters only."""
    frozen = bind(method)
    params, received = distinct_params(method, frozen)
    learnable = {key for key, value in params.items() if value.is_floating_point()}
    trained = {key for phase in method.phases for key in phase.keys}
    assert trained | method.shared_keys == learnable  # FedMGP shares copies of what it trains
    own = learned(params)
    loss, _ = method.loss(own, received, frozen, step(method, frozen, features, labels))
    assert loss.shape == (len(COUNTS),)
    found = gradients(loss[1], own)
    assert found.keys() == trained
    for gradient in found.values():
        assert gradient[1].abs().max() > 0
        assert not gradient[[0, 2]].any()


def test_training_among_some_classes_is_training_of_a_model_of_these_classes(method, bind, features, labels):
    """Classes 1, 3 and 4 of 5: the same loss, parts and gradients as if there were no others."""
    if isinstance(method, NeedsAllClasses) and method.needs_all_classes:
        pytest.skip(method.needs_all_classes)
    own, frozen = torch.tensor([1, 3, 4]), bind(method)
    params, received = distinct_params(method, frozen)
    images = step(method, frozen, features, labels % len(own))
    counts = torch.zeros(len(COUNTS), len(NAMES), dtype=torch.bool).index_fill(1, own, True)
    among = dataclasses.replace(images, labels=own[images.labels], own=counts)
    some, alone = learned(params), learned(params)
    loss, parts = method.loss(some, received, frozen, among)
    of_these = bind(method, [NAMES[label] for label in own])
    expected, wanted = method.loss(alone, distinct_params(method, of_these)[1], of_these, images)
    torch.testing.assert_close({"": loss, **parts}, {"": expected, **wanted}, atol=2e-5, rtol=0)
    found, gradient = gradients(loss, some), gradients(expected, alone)
    for key in gradient:
        torch.testing.assert_close(found[key], gradient[key], atol=1e-4, rtol=1e-3)


def test_logits_of_each_model_on_the_same_images(method, bind, features):
    """Features with a client axis of 1 are shared by all clients; classes other than those of training work too."""
    frozen = bind(method) if not method.supports_unseen_classes else bind(method, ["teapot", "old_shoe"])
    params, _ = distinct_params(method, bind(method))
    images = features[method.image_inputs][None, :5]
    together = method.classifier(params, frozen)(images)
    assert together.shape[:2] == (3, 5)
    for client in range(3):
        own = {key: value[client : client + 1] for key, value in params.items()}
        torch.testing.assert_close(method.classifier(own, frozen)(images)[0], together[client], atol=1e-4, rtol=0)


def test_bfloat16_is_close_to_float32(method, bind, features, labels):
    params, received = distinct_params(method, bind(method))
    images = step(method, bind(method), features, labels)
    exact, rough = (
        method.loss(params, received, bind(method, dtype=dtype), images)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    torch.testing.assert_close(exact, rough, atol=0.05, rtol=0.05)


def test_the_start_is_a_function_of_the_generator(method, bind):
    frozen = bind(method)
    first, again, other = (method.init(frozen, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first) or method.extra_texts


def test_all_methods_are_covered():
    assert {name for name, _ in CASES.values()} | {"zero_shot", "pfedpt", "fedlora"} >= METHODS.keys()
