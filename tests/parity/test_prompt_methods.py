"""KgCoOp, ProGrad, PromptFolio and FedPHA on one batch, equal to the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_gradient, same_logits, same_params
from test_methods import PREFIX, check_steps, coop_name, image_batch

from fedpgp import methods
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.methods.base import Batch
from fedpgp.methods.fedpha import weak_directions
from fedpgp.methods.prograd import projected

unit = torch.nn.functional.normalize


def training_batch(golden, backbone, arrays):
    features, labels = image_batch(golden, arrays, backbone), torch.from_numpy(arrays["labels"])
    return Batch(features[None], labels[None], torch.ones(1, len(labels), dtype=torch.bool))


def check_all(method, frozen, params, arrays, prefix, golden, backbone, rename, settings):
    """The shapes of the start, the logits before and after three steps, and the steps."""
    fresh = method.init(frozen, torch.Generator())
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in params.items()}
    features, unseen = (image_batch(golden, arrays, backbone, name) for name in ("images", "images_eval"))
    logits = method.classifier({key: value[None] for key, value in params.items()}, frozen)(features[None])[0]
    same_logits(logits, arrays[f"{prefix}logits"])
    trained = check_steps(method, frozen, params, arrays, prefix, features, rename, settings)
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays[f"{prefix}logits_eval_after"])


def check_gradients(losses, ctx, arrays, prefix):
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss.sum(), ctx, retain_graph=True)
        same_gradient(gradient[0], arrays[f"{prefix}grad_{name}/ctx"])


def test_kgcoop(golden, backbone, class_set, settings):
    arrays = golden("kgcoop")
    ctx, frozen = torch.from_numpy(arrays[f"param0/{PREFIX}ctx"]), class_set(arrays["classnames"])
    method = methods.create("kgcoop", {"w": float(arrays["w"]), "n_ctx": len(ctx)})
    check_all(method, frozen, {"ctx": ctx}, arrays, "", golden, backbone, coop_name, settings)
    own = ctx[None].clone().requires_grad_()
    total, parts = method.loss({"ctx": own}, {}, frozen, training_batch(golden, backbone, arrays))
    for actual, name in ((total, "total"), (parts["ce"], "ce"), (parts["kg"], "kg")):
        same_logits(actual[0], arrays[f"loss_{name}"])
    check_gradients(parts, own, arrays, "")
    z, t = unit(frozen.encode(own)[0], dim=-1), unit(frozen.template(), dim=-1)
    same_logits(z, arrays["text_features_norm"])
    same_logits(t, arrays["text_features_template"])
    same_logits((z * t).sum(-1), arrays["cos"])


def prograd(arrays, n_ctx, **changes):
    given = {"strength": float(arrays["lambda"]), "tau": float(arrays["T"]), "n_ctx": n_ctx}
    return methods.create("prograd", given | changes)


@pytest.mark.parametrize("start", ["conflict", "aligned"])
def test_prograd(golden, backbone, class_set, settings, start):
    arrays = dict(golden("prograd"))
    arrays[f"{start}/loss_total_per_step"] = arrays[f"{start}/losses_per_step"][:, 0]
    ctx, frozen = torch.from_numpy(arrays[f"{start}/param0/{PREFIX}ctx"]), class_set(arrays["classnames"])
    method, prefix = prograd(arrays, len(ctx)), f"{start}/"
    check_all(method, frozen, {"ctx": ctx}, arrays, prefix, golden, backbone, coop_name, settings)

    batch = training_batch(golden, backbone, arrays)
    steps = len(arrays[f"{start}/losses_per_step"])
    data = LocalData(batch.features[0], batch.labels[0], np.zeros(1, dtype=np.int64))
    orders = [[[np.arange(len(batch.labels[0]))] * steps]]
    update = local_update(method, frozen, {"ctx": ctx[None]}, {}, data, orders, Optimizer(settings["lr"], 0.0, 0.0))
    same_logits(update.parts["kl"][0], arrays[f"{start}/losses_per_step"][:, 1].mean())
    assert update.parts["conflict"][0] == pytest.approx((arrays[f"{start}/cos_grads_per_step"] < 0).mean())

    total, parts = method.loss({"ctx": ctx[None]}, {}, frozen, batch)
    for actual, name in ((total, "ce"), (parts["ce"], "ce"), (parts["kl"], "kl")):
        same_logits(actual[0], arrays[f"{start}/loss_{name}"])
    assert parts["conflict"][0] == (start == "conflict")
    a, b = (torch.from_numpy(arrays[f"{start}/grad_{name}/ctx"])[None] for name in ("ce", "kl"))
    same_gradient(projected(a, b, method.settings.strength)[0][0], arrays[f"{start}/grad/{PREFIX}ctx"])
    same_logits(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0), arrays[f"{start}/cos_grads"])
    teacher = methods.create("zero_shot", {}).classifier({}, frozen)(batch.features)[0]
    same_logits(teacher, arrays["logits_template"])


@pytest.mark.parametrize("start", ["conflict", "aligned"])
def test_distillation_is_the_prograd_of_a_later_benchmark(golden, backbone, class_set, settings, start):
    """Its gradient is a + lambda b, whatever the angle; both parts have the authors' gradients."""
    arrays = golden("prograd")
    ctx, frozen = torch.from_numpy(arrays[f"{start}/param0/{PREFIX}ctx"])[None], class_set(arrays["classnames"])
    method, batch = prograd(arrays, ctx.shape[1], guidance="distillation"), training_batch(golden, backbone, arrays)
    own = ctx.clone().requires_grad_()
    total, parts = method.loss({"ctx": own}, {}, frozen, batch)
    same_logits(total[0], arrays[f"flip/{start}/loss_total"])
    check_gradients(parts, own, arrays, f"{start}/")
    (gradient,) = torch.autograd.grad(total.sum(), own)
    same_gradient(gradient[0], arrays[f"flip/{start}/grad/ctx"])
    data = LocalData(batch.features[0], batch.labels[0], np.zeros(1, dtype=np.int64))
    orders = [[[np.arange(len(batch.labels[0]))] * 3]]
    update = local_update(method, frozen, {"ctx": ctx}, {}, data, orders, Optimizer(settings["lr"], 0.0, 0.0))
    same_params(update.params["ctx"][0], arrays[f"flip/{start}/param3/ctx"])


def promptfolio_name(arrays, prefix, key):
    """The reference has both prompts in one array, the global one first."""
    return arrays[f"{prefix}{PREFIX}ctx"][0 if key == "ctx" else 1]


def test_promptfolio(golden, backbone, class_set, settings):
    arrays = golden("promptfolio")
    params = {key: torch.from_numpy(promptfolio_name(arrays, "param0/", key)) for key in ("ctx", "local")}
    frozen, n_ctx = class_set(arrays["classnames"]), len(params["ctx"])
    method = methods.create("promptfolio", {"theta": float(arrays["theta"]), "n_ctx": n_ctx})
    check_all(method, frozen, params, arrays, "", golden, backbone, promptfolio_name, settings)
    z_g, z_l = (unit(frozen.encode(params[key][None])[0], dim=-1) for key in ("ctx", "local"))
    same_logits(z_g, arrays["text_features_global"])
    same_logits(z_l, arrays["text_features_local"])
    stacked = {key: value[None] for key, value in params.items()}
    for theta in (0, 1):
        only = methods.create("promptfolio", {"theta": theta, "n_ctx": n_ctx})
        for images, name in (("images", "logits"), ("images_eval", "logits_eval")):
            features = image_batch(golden, arrays, backbone, images)[None]
            same_logits(only.classifier(stacked, frozen)(features)[0], arrays[f"theta{theta}/{name}"])
            if theta == 0:
                alone = method.classifier(method.global_model(stacked), frozen)(features)[0]
                same_logits(alone, arrays[f"theta0/{name}"])


def fedpha(arrays, variant):
    """All of it from the arrays; `he_eot` has local prompts of several lengths."""
    given = {"ratio": float(arrays["ratio"]), "margin": float(arrays["alpha"])}
    if variant == "fixed":
        return methods.create("fedpha", given | {"n_ctx": arrays[f"fixed/param0/{PREFIX}ctx_global"].shape[1]})
    lengths = arrays["local_lengths"].tolist()
    return methods.create("fedpha", given | {"n_ctx": int(arrays["global_length"]), "local_lengths": lengths})


def fedpha_name(longest):
    """The array of a parameter; local prompts are padded to the longest one."""

    def named(arrays, prefix, key):
        if key == "ctx":
            return arrays[f"{prefix}{PREFIX}ctx_global"].reshape(-1, arrays[f"{prefix}{PREFIX}ctx_global"].shape[-1])
        (name,) = (name for name in arrays if name.startswith(f"{prefix}{PREFIX}ctx_local"))
        local = arrays[name].reshape(-1, arrays[name].shape[-1])
        return np.pad(local, ((0, longest - len(local)), (0, 0)))

    return named


@pytest.mark.parametrize("variant", ["fixed", "he_eot"])
def test_fedpha(golden, backbone, class_set, settings, variant):
    arrays = golden("fedpha")
    method, frozen, prefix = fedpha(arrays, variant), class_set(arrays["classnames"]), f"{variant}/"
    fresh, client = method.init(frozen, torch.Generator()), int(arrays["client"])
    named = fedpha_name(len(fresh["local"]))
    params = {key: torch.from_numpy(named(arrays, f"{prefix}param0/", key)) for key in ("ctx", "local")}
    if variant != "fixed":
        params["length"] = method.personal_of(client, fresh)["length"]
        assert params["length"] == arrays["local_lengths"][client]
    check_all(method, frozen, params, arrays, prefix, golden, backbone, named, settings)

    own = {key: value[None] for key, value in params.items()}
    total, parts = method.loss(own, {}, frozen, training_batch(golden, backbone, arrays))
    for actual, name in ((total, "total"), *((value, key) for key, value in parts.items())):
        same_logits(actual[0], arrays[f"{prefix}loss_{name}"])
    np.testing.assert_allclose(parts["pull"][0].detach(), arrays[f"{prefix}loss_pull"], atol=1e-6, rtol=0)
    features = image_batch(golden, arrays, backbone)[None]
    alone = method.classifier(method.global_model(own), frozen)(features)[0]
    same_logits(alone, arrays[f"{prefix}logits_global"])
    projector = weak_directions(own["ctx"], method.settings.ratio)[0]
    same_params(projector, arrays[f"{prefix}projector"])
    length = arrays[f"{prefix}ctx_projected"].shape[-2]
    same_params((params["local"] @ projector)[:length], arrays[f"{prefix}ctx_projected"].reshape(length, -1))
