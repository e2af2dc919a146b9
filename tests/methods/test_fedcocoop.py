"""A context for each image: against the same contexts encoded one by one, and in chunks."""

from __future__ import annotations

import torch
from three_clients import batch, distinct_params, gradients, learned

from fedpgp import methods
from fedpgp.methods import fedcocoop
from fedpgp.methods.base import cosine_logits

METHOD = methods.create("fedcocoop", {"n_ctx": 3})


def test_each_image_is_compared_with_prompts_of_its_own(bind, features):
    frozen = bind(METHOD)
    params, _ = distinct_params(METHOD, frozen)
    image = features["pooled"][7]
    logits = METHOD.classifier(params, frozen)(features["pooled"][None])[0, 7]
    one = {key: value[0] for key, value in params.items()}
    hidden = torch.relu(one["meta_1.weight"] @ (image / image.norm()) + one["meta_1.bias"])
    ctx = one["ctx"] + one["meta_2.weight"] @ hidden + one["meta_2.bias"]
    alone = cosine_logits(image[None, None], frozen.encode(ctx[None]), frozen.logit_scale)[0, 0]
    torch.testing.assert_close(logits, alone, atol=1e-4, rtol=0)


def test_a_meta_net_that_says_nothing_leaves_promptfl(bind, features):
    frozen = bind(METHOD)
    params, _ = distinct_params(METHOD, frozen)
    silent = params | {key: torch.zeros_like(params[key]) for key in ("meta_2.weight", "meta_2.bias")}
    plain = methods.create("promptfl", {"n_ctx": 3}).classifier({"ctx": params["ctx"]}, frozen)
    images = features["pooled"][None]
    torch.testing.assert_close(METHOD.classifier(silent, frozen)(images), plain(images), atol=1e-4, rtol=0)


def test_chunks_change_nothing(bind, features, labels, monkeypatch):
    frozen, images = bind(METHOD), batch(features["pooled"], labels)
    params, received = distinct_params(METHOD, frozen)
    results = []
    for size in (10_000, 4 * frozen.num_classes):
        monkeypatch.setattr(fedcocoop, "PROMPTS_PER_CHUNK", size)
        own = learned(params)
        loss, _ = METHOD.loss(own, received, frozen, images)
        results.append((loss, gradients(loss, own)))
    (loss, whole), (in_chunks, chunked) = results
    torch.testing.assert_close(loss, in_chunks, atol=1e-5, rtol=0)
    for key, gradient in whole.items():
        torch.testing.assert_close(gradient, chunked[key], atol=1e-5, rtol=1e-4)


def test_memory_is_that_of_a_chunk(bind, features, labels, monkeypatch):
    """The number of images that pass through the tower at a time does not depend on the batch."""
    frozen, seen = bind(METHOD), []
    encode = frozen.encode
    monkeypatch.setattr(frozen, "encode", lambda ctx, position: seen.append(len(ctx)) or encode(ctx, position))
    monkeypatch.setattr(fedcocoop, "PROMPTS_PER_CHUNK", 4 * frozen.num_classes)
    params, received = distinct_params(METHOD, frozen)
    METHOD.loss(params, received, frozen, batch(features["pooled"], labels))
    assert seen == [4, 4, 4, 4, 4, 4, 3]  # three clients, padded to 9 images each


def test_contexts_of_a_large_pool_are_made_for_some_images_at_a_time(bind, features, monkeypatch):
    frozen, made = bind(METHOD), []
    params, _ = distinct_params(METHOD, frozen)
    images = features["pooled"][None]
    whole = METHOD.classifier(params, frozen)(images)
    monkeypatch.setattr(fedcocoop, "VALUES_OF_CONTEXTS", 2 * params["ctx"].numel())
    in_chunks = fedcocoop.in_chunks
    monkeypatch.setattr(fedcocoop, "in_chunks", lambda *args: made.append(len(args[2])) or in_chunks(*args))
    torch.testing.assert_close(METHOD.classifier(params, frozen)(images), whole, atol=1e-4, rtol=0)
    assert set(made) == {2 * len(params["ctx"]), len(params["ctx"])}  # of each client two images, then the last


def test_the_hidden_layer_is_a_sixteenth(bind):
    params = METHOD.init(bind(METHOD), torch.Generator().manual_seed(0))
    assert params["meta_1.weight"].shape == (4, 64)
    assert params["meta_2.weight"].shape == (64, 4)
    assert params["meta_2.weight"].abs().max() <= 0.5  # U(-1, 1) / sqrt(4)
    assert params["meta_2.weight"].abs().max() > 0.45
