"""Losses, gradients, steps and logits of each method on one batch, equal to the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_gradient, same_logits, same_params

from fedpgp import methods
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.methods.base import Batch
from fedpgp.methods.fedpgp import contrast, personal_prompt

PREFIX = "prompt_learner."


def image_batch(golden, arrays, backbone, name="images"):
    """Raw image features of a stored batch."""
    with torch.no_grad():
        return backbone.model.encode_image(torch.from_numpy(arrays[name]))


def check_steps(method, frozen, params, arrays, prefix, features, rename, settings):
    """Gradient, three SGD steps with their losses, and the logits afterwards."""
    labels = torch.from_numpy(arrays["labels"])
    batch = Batch(features[None], labels[None], torch.ones(1, len(labels), dtype=torch.bool))
    learned = {key: value[None].requires_grad_() for key, value in params.items()}
    loss, _ = method.loss(learned, {}, frozen, batch)
    gradients = torch.autograd.grad(loss.sum(), list(learned.values()))
    for key, gradient in zip(learned, gradients, strict=True):
        same_gradient(gradient[0], rename(arrays, f"{prefix}grad/", key))
    losses = arrays[f"{prefix}loss_total_per_step"]
    same_logits(loss[0], losses[0])
    start = {key: value.detach() for key, value in learned.items()}
    data = LocalData(features, labels, np.zeros(1, dtype=np.int64))
    for steps in (1, len(losses)):
        orders = [[[np.arange(len(labels))] * steps]]
        update = local_update(method, frozen, start, {}, data, orders, Optimizer(settings["lr"], 0.0, 0.0))
        same_logits(update.loss[0], losses[:steps].mean())
        for key, value in update.params.items():
            same_params(value[0], rename(arrays, f"{prefix}param{steps}/", key))
    return update.params


def coop_name(arrays, prefix, key):
    return arrays[f"{prefix}{PREFIX}{key}"]


def fedpgp_name(arrays, prefix, key):
    return arrays[f"{prefix}{PREFIX}{'sigma' if key == 'ctx' else key}"][0]


@pytest.mark.parametrize("variant", ["end", "middle", "front", "csc", "init"])
@pytest.mark.parametrize("name", ["promptfl", "coop"])
def test_promptfl_and_coop(golden, backbone, class_set, settings, name, variant):
    arrays = golden("promptfl_coop")
    position = variant if variant in ("middle", "front") else "end"
    words = settings.get("cocoop_init", "a photo of a") if variant == "init" else None
    method = methods.create(name, {"position": position, "class_specific": variant == "csc", "ctx_init": words})
    frozen = class_set(arrays["classnames"], phrases=method.phrases)
    ctx = torch.from_numpy(arrays[f"{variant}/param0/{PREFIX}ctx"])
    if words:
        assert torch.equal(method.init(frozen, torch.Generator())["ctx"], ctx)

    with torch.no_grad():
        same_logits(frozen.encode(ctx[None], position)[0], arrays[f"{variant}/text_features_raw"])
    features = image_batch(golden, arrays, backbone)
    logits = method.classifier({"ctx": ctx[None]}, frozen)(features[None])[0]
    same_logits(logits, arrays[f"{variant}/logits"])
    trained = check_steps(method, frozen, {"ctx": ctx}, arrays, f"{variant}/", features, coop_name, settings)
    unseen = image_batch(golden, arrays, backbone, "images_eval")
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays[f"{variant}/logits_eval_after"])


def fedpgp(arrays):
    rank = arrays[f"param0/{PREFIX}U"].shape[-1]
    given = {"rank": rank, "mu": float(arrays["mu"]), "tau": float(arrays["temp"]), "anchor": "placeholder"}
    return methods.create("fedpgp", given)


def test_fedpgp(golden, backbone, class_set, settings):
    arrays = golden("fedpgp_N1")
    method, frozen = fedpgp(arrays), class_set(arrays["classnames"])
    params = {key: torch.from_numpy(fedpgp_name(arrays, "param0/", key)) for key in ("ctx", "U", "V")}
    features = image_batch(golden, arrays, backbone)
    same_logits(torch.nn.functional.normalize(features, dim=-1), arrays["image_features_norm"])
    logits = method.classifier({key: value[None] for key, value in params.items()}, frozen)(features[None])[0]
    same_logits(logits, arrays["logits"])
    trained = check_steps(method, frozen, params, arrays, "", features, fedpgp_name, settings)
    unseen = image_batch(golden, arrays, backbone, "images_eval")
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays["logits_eval_after"])


def test_both_terms_of_fedpgp(golden, backbone, class_set):
    arrays = golden("fedpgp_N1")
    method, frozen = fedpgp(arrays), class_set(arrays["classnames"])
    names = ("ctx", "U", "V")
    params = {key: torch.from_numpy(fedpgp_name(arrays, "param0/", key))[None].requires_grad_() for key in names}
    features, labels = image_batch(golden, arrays, backbone), torch.from_numpy(arrays["labels"])
    batch = Batch(features[None], labels[None], torch.ones(1, len(labels), dtype=torch.bool))
    total, parts = method.loss(params, {}, frozen, batch)
    for ours, theirs in ((total, "loss_total"), (parts["ce"], "loss_ce"), (parts["con"], "loss_con")):
        same_logits(ours[0], arrays[theirs])
    for part in ("ce", "con"):
        gradients = torch.autograd.grad(parts[part].sum(), list(params.values()), retain_graph=True)
        for key, gradient in zip(names, gradients, strict=True):
            same_gradient(gradient[0], arrays[f"grad_{part}/{'sigma' if key == 'ctx' else key}"][0])


def test_features_that_the_contrastive_term_compares(golden, class_set):
    arrays = golden("fedpgp_N1")
    frozen = class_set(arrays["classnames"])
    params = {key: torch.from_numpy(fedpgp_name(arrays, "param0/", key))[None] for key in ("ctx", "U", "V")}
    with torch.no_grad():
        z_i, z_g = (frozen.encode(prompt) for prompt in (personal_prompt(params), params["ctx"]))
        z_c = frozen.placeholder(params["ctx"].shape[1])
        unit = torch.nn.functional.normalize
        same_logits(unit(z_i[0], dim=-1), arrays["text_features_full"])
        same_logits(unit(z_g[0], dim=-1), arrays["text_features_sigma"])
        same_logits(unit(z_c, dim=-1), arrays["text_features_template"])
        same_logits(contrast(z_g, z_i, z_c, float(arrays["temp"]))[0], arrays["loss_con"])
