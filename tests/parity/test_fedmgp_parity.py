"""FedMGP: steps with each diversity term, and whole rounds with the authors' draws, equal to the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_logits, same_params
from test_federation import client_data, golden_tree, stored_order
from test_methods import check_steps

from fedpgp import methods
from fedpgp.core.tree import stack
from fedpgp.federation.client import Optimizer, local_update
from fedpgp.federation.state import average, weighted_sum
from fedpgp.methods.base import Batch
from fedpgp.methods.fedmgp import closeness, probabilities, similarity, with_drawn

NAMES = {"ctx": "prompt_learner.ctx", "image": "image_encoder.VPT"}
TREE = {key: (name, ...) for key, name in NAMES.items()}
MODALITIES = {"text": "ctx", "vision": "image"}


def create(arrays, prefix, words, **given):
    ctx, image = (arrays[f"{prefix}/{name}"] for name in NAMES.values())
    sizes = {"groups": len(ctx), "n_ctx": ctx.shape[1], "n_ctx_image": image.shape[1]}
    weight = float(arrays["div_weight"])
    return methods.create("fedmgp", {**sizes, "ctx_init": words, "diversity_weight": weight, **given})


def named(arrays, prefix, key):
    return arrays[f"{prefix}{NAMES[key]}"]


@pytest.mark.parametrize("variant", ["paper", "l1", "none", "random"])
def test_steps(golden, class_set, settings, variant):
    """`l1` is the released diversity term; `random` has no words around the learned tokens."""
    arrays, prefix = golden("fedmgp"), f"{variant}/"
    given = {"none": {"diversity_weight": 0}, "l1": {"diversity": "released_l1"}}.get(variant, {})
    words = None if variant == "random" else settings["fedmgp"]["ctx_init"]
    method = create(arrays, f"{variant}/param0", words, **given)
    frozen = class_set(arrays["classnames"], extra_texts=method.extra_texts, visual=True)
    params = golden_tree(arrays, f"{prefix}param0/", TREE)
    fresh = method.init(frozen, torch.Generator())
    assert {key: fresh[key].shape for key in params} == {key: value.shape for key, value in params.items()}

    own = {key: value[None] for key, value in params.items()}
    pixels, unseen = (255 * torch.from_numpy(arrays[name]) for name in ("images", "images_eval"))  # mean 0, std 1
    unit, labels = torch.nn.functional.normalize, torch.from_numpy(arrays["labels"])[None]
    with torch.no_grad():
        text, images = method._text(own, frozen)[0], method._images(own, frozen, pixels[None])[0]
        same_logits(unit(text, dim=-1), arrays[f"{prefix}text_features_norm"])
        same_logits(images, arrays[f"{prefix}image_features_raw"])
        same_logits(method.classifier(own, frozen)(pixels[None])[0], arrays[f"{prefix}logits"])
        total, parts = method.loss(own, {}, frozen, Batch(pixels[None], labels, torch.ones_like(labels).bool()))
    same_logits(total[0], arrays[f"{prefix}loss_total"])
    same_logits(parts["ce"][0], arrays[f"{prefix}loss_ce"])
    if variant != "none":
        same_logits(parts["diversity"][0] * float(arrays["div_weight"]), arrays[f"{prefix}loss_div"])
        for features, name in ((text, "text"), (images, "vision")):
            mean = closeness(features[None], method.settings.diversity).mean()
            same_logits(mean, np.abs(arrays[f"{prefix}div_{name}_raw"]))
    trained = check_steps(method, frozen, params, arrays, prefix, pixels, named, settings)
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays[f"{prefix}logits_eval_after"])


def pixel_data(arrays, clients):
    """The data of some clients in the form that the method takes: pixels with mean 0 and standard deviation 1."""
    changed = {f"client{client}/image_features": 255 * arrays[f"client{client}/images"] for client in clients}
    return client_data({**arrays, **changed}, clients)


def test_rounds(golden, class_set, settings):
    """Local training, similarities, what is sent for the authors' draws, averages, and the prompts afterwards."""
    arrays = golden("fedmgp_traj")
    given = {"shared_groups": int(arrays["topk"]), "temperature": float(arrays["temperature"])}
    method = create(arrays, "paper/init", settings["fedmgp"]["ctx_init"], **given)
    frozen = class_set(arrays["classnames"], extra_texts=method.extra_texts, visual=True)
    clients = len(arrays["data_counts"])
    personal = stack(golden_tree(arrays, "paper/init/", TREE), clients)
    shared = {key: value for key, value in method.init(frozen, torch.Generator()).items() if key in method.shared_keys}
    sgd = Optimizer(float(arrays["lr"]), float(arrays["momentum"]), float(arrays["weight_decay"]))
    for number in range(int(arrays["rounds"])):
        block = np.sort(arrays[f"paper/round{number}/participants"])
        prefixes = [f"paper/round{number}/client{client}" for client in block]
        data, counts = pixel_data(arrays, block)
        params = stack(shared, len(block)) | {key: value[block] for key, value in personal.items() if key in NAMES}
        update = local_update(method, frozen, params, shared, data, [stored_order(arrays, counts)], sgd)
        drawn = {}
        for modality, key in MODALITIES.items():
            similar = similarity(update.params[key], shared[f"global_{key}"])
            chances = probabilities(similar, method.settings.temperature)
            drawn[f"drawn_{key}"] = torch.stack(
                [torch.from_numpy(arrays[f"{prefix}/selected_{modality}"]) for prefix in prefixes]
            )
            for place, prefix in enumerate(prefixes):
                same_params(update.params[key][place], arrays[f"{prefix}/trained/{NAMES[key]}"])
                if number:
                    same_params(similar[place], arrays[f"{prefix}/similarity_{modality}"])
                    same_params(chances[place], arrays[f"{prefix}/probability_{modality}"])
        for place, prefix in enumerate(prefixes):
            same_logits(update.loss[place], arrays[f"{prefix}/losses"].mean())
        sent = with_drawn(update.params, drawn)
        uploads = {key: sent[key] for key in shared}
        weights = torch.from_numpy(counts)
        shared = average([weighted_sum(uploads, weights)], float(counts.sum()), shared)
        after = method.after_aggregation({key: value for key, value in sent.items() if key not in shared}, shared)
        for modality, key in MODALITIES.items():
            same_params(shared[f"global_{key}"], arrays[f"paper/round{number}/global_{modality}"])
            for place, prefix in enumerate(prefixes):
                same_params(after[key][place], arrays[f"{prefix}/after/{NAMES[key]}"])
            personal[key][block] = after[key]
        classifier = method.classifier(personal, frozen)
        for client in range(clients):
            unseen = 255 * torch.from_numpy(arrays[f"client{client}/images_eval"])
            logits = classifier(unseen[None])[client]
            same_logits(logits, arrays[f"paper/round{number}/client{client}/logits_eval"])
