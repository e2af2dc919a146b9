"""Losses, gradients, steps and logits of each method on one batch, equal to the authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_gradient, same_logits, same_params

from fedpgp import methods
from fedpgp.clip.images import patch_tokens
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.methods.base import Batch
from fedpgp.methods.fedcocoop import meta_net
from fedpgp.methods.fedmaple import couple
from fedpgp.methods.fedotp import plan as transport_plan
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
    stacked = {key: value[None] for key, value in params.items()}
    learned = {key: stacked[key].requires_grad_() for key in sorted(method.phases[0].keys)}
    loss, _ = method.loss(stacked, {}, frozen, batch)
    gradients = torch.autograd.grad(loss.sum(), list(learned.values()))
    for key, gradient in zip(learned, gradients, strict=True):
        same_gradient(gradient[0], rename(arrays, f"{prefix}grad/", key))
    losses = arrays[f"{prefix}loss_total_per_step"]
    same_logits(loss[0], losses[0])
    start = {key: value.detach() for key, value in stacked.items()}
    data = LocalData(features, labels, np.zeros(1, dtype=np.int64))
    for steps in (1, len(losses)):
        orders = [[[np.arange(len(labels))] * steps]]
        update = local_update(method, frozen, start, {}, data, orders, Optimizer(settings["lr"], 0.0, 0.0))
        same_logits(update.loss[0], losses[:steps].mean())
        for key in learned:
            same_params(update.params[key][0], rename(arrays, f"{prefix}param{steps}/", key))
    return update.params


def coop_name(arrays, prefix, key):
    return arrays[f"{prefix}{PREFIX}{key}"]


def fedpgp_name(arrays, prefix, key):
    return arrays[f"{prefix}{PREFIX}{'sigma' if key == 'ctx' else key}"]


@pytest.mark.parametrize("variant", ["end", "middle", "front", "csc", "init"])
@pytest.mark.parametrize("name", ["promptfl", "coop"])
def test_promptfl_and_coop(golden, backbone, class_set, settings, name, variant):
    arrays = golden("promptfl_coop")
    position = variant if variant in ("middle", "front") else "end"
    words = settings["promptfl_init"] if variant == "init" else None
    method = methods.create(name, {"position": position, "class_specific": variant == "csc", "ctx_init": words})
    frozen = class_set(arrays["classnames"], extra_texts=method.extra_texts)
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


COCOOP = {"ctx": "ctx"} | {
    f"meta_{layer}.{part}": f"meta_net.linear{layer}.{part}" for layer in (1, 2) for part in ("weight", "bias")
}


@pytest.mark.parametrize("variant", ["init", "random"])
def test_fedcocoop(golden, backbone, class_set, settings, variant):
    arrays = golden("cocoop")
    words = settings["cocoop_init"] if variant == "init" else None
    method = methods.create("fedcocoop", {"ctx_init": words, "n_ctx": settings["cocoop_nctx"]})
    frozen = class_set(arrays["classnames"], extra_texts=method.extra_texts)

    def named(arrays, prefix, key):
        return arrays[f"{prefix}{PREFIX}{COCOOP[key]}"]

    params = {key: torch.from_numpy(named(arrays, f"{variant}/param0/", key)) for key in COCOOP}
    fresh = method.init(frozen, torch.Generator())
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in params.items()}
    if words:
        assert torch.equal(fresh["ctx"], params["ctx"])
    features = image_batch(golden, arrays, backbone)
    unit = torch.nn.functional.normalize(features, dim=-1)
    stacked = {key: value[None] for key, value in params.items()}
    same_logits(meta_net(stacked, unit[None])[0], arrays[f"{variant}/meta_bias"])
    logits = method.classifier(stacked, frozen)(features[None])[0]
    same_logits(logits, arrays[f"{variant}/logits"])
    trained = check_steps(method, frozen, params, arrays, f"{variant}/", features, named, settings)
    unseen = image_batch(golden, arrays, backbone, "images_eval")
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays[f"{variant}/logits_eval_after"])


def maple_name(arrays, prefix, key):
    """The reference has one module per layer; here they are stacked."""
    first, deeper, part = {
        "ctx": ("ctx", "compound_prompts_text.", ""),
        "coupling.weight": ("proj.weight", "compound_prompt_projections.", ".weight"),
        "coupling.bias": ("proj.bias", "compound_prompt_projections.", ".bias"),
    }[key]
    layers, name = [arrays[f"{prefix}{PREFIX}{first}"]], f"{prefix}{PREFIX}{deeper}{{}}{part}"
    while name.format(len(layers) - 1) in arrays:
        layers.append(arrays[name.format(len(layers) - 1)])
    return np.stack(layers)


@pytest.mark.parametrize("variant", ["init", "random", "shallow"])
def test_fedmaple(golden, class_set, settings, variant):
    arrays = golden("maple")
    keys = ("ctx", "coupling.weight", "coupling.bias")
    params = {key: torch.from_numpy(maple_name(arrays, f"{variant}/param0/", key)) for key in keys}
    depth, n_ctx, _ = params["ctx"].shape
    assert depth == (1 if variant == "shallow" else settings["maple_depth"])
    words = settings["maple_init"] if variant == "init" else None
    method = methods.create("fedmaple", {"ctx_init": words, "n_ctx": n_ctx, "depth": depth})
    frozen = class_set(arrays["classnames"], extra_texts=method.extra_texts, visual=True)
    fresh = method.init(frozen, torch.Generator())
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in params.items()}
    if words:
        assert torch.equal(fresh["ctx"][0], params["ctx"][0])

    stacked = {key: value[None] for key, value in params.items()}
    prompts = couple(stacked)
    same_logits(prompts[0, 0], arrays[f"{variant}/visual_prompt_shallow"])
    for layer in range(1, depth):
        same_logits(prompts[0, layer], arrays[f"{variant}/visual_prompt_deep{layer - 1}"])
    pixels, unseen = (255 * torch.from_numpy(arrays[name]) for name in ("images", "images_eval"))  # mean 0, std 1
    raw = frozen.visual.encode(pixels, prompts.expand(len(pixels), -1, -1, -1))
    same_logits(raw, arrays[f"{variant}/image_features_raw"])
    same_logits(method.classifier(stacked, frozen)(pixels[None])[0], arrays[f"{variant}/logits"])
    trained = check_steps(method, frozen, params, arrays, f"{variant}/", pixels, maple_name, settings)
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays[f"{variant}/logits_eval_after"])


def fedotp(arrays, variant, **changes):
    """All of it from the arrays; they stop as a batch."""
    given = {
        "num_prompts": len(arrays[f"{variant}/param0/{PREFIX}ctx"]),
        "transport": variant.split("_")[0],
        "top_percent": float(arrays[f"{variant}/top_percent"]),
        "max_iter": int(arrays[f"{variant}/max_iter"]),
        "eps": float(arrays["eps"]),
        "thresh": float(arrays["thresh"]),
        "stop": "batch",
    }
    return methods.create("fedotp", given | changes)


def fedotp_name(arrays, prefix, key):
    """The reference has all prompts in one array, the global one first."""
    ctx = arrays[f"{prefix}{PREFIX}ctx"]
    return ctx[0] if key == "ctx" else ctx[1:]


def fedotp_params(arrays, variant):
    return {key: torch.from_numpy(fedotp_name(arrays, f"{variant}/param0/", key)) for key in ("ctx", "local")}


@pytest.mark.parametrize("variant", ["cot", "sinkhorn", "cot_tp1", "cot_N4", "cot_iter3"])
def test_fedotp(golden, backbone, class_set, settings, variant):
    arrays = golden("fedotp")
    method, frozen = fedotp(arrays, variant), class_set(arrays["classnames"])
    params = fedotp_params(arrays, variant)
    with torch.no_grad():
        tokens, unseen = (
            patch_tokens(backbone.model.visual, torch.from_numpy(arrays[name])) for name in ("images", "images_eval")
        )
    same_logits(tokens, arrays["visual_tokens_all"])
    unit = torch.nn.functional.normalize
    same_logits(unit(tokens[:, 1:], dim=-1), arrays["image_features_local_norm"])
    stacked = {key: value[None] for key, value in params.items()}
    logits = method.classifier(stacked, frozen)(tokens[None])[0]
    same_logits(logits, arrays[f"{variant}/logits"])
    trained = check_steps(method, frozen, params, arrays, f"{variant}/", tokens, fedotp_name, settings)
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays[f"{variant}/logits_eval_after"])


@pytest.mark.parametrize("variant", ["cot", "sinkhorn", "cot_tp1", "cot_N4", "cot_iter3"])
def test_transport_plans(golden, variant):
    """Plans from the authors' kernels, and their marginals."""
    arrays = golden("fedotp")
    settings = fedotp(arrays, variant).settings
    sim = 1 + settings.eps * torch.from_numpy(arrays[f"{variant}/kernel"]).log()
    actual = transport_plan(sim.transpose(-1, -2)[None], settings)[0]
    np.testing.assert_allclose(actual.transpose(-1, -2), arrays[f"{variant}/plan"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(actual.sum(-1), arrays[f"{variant}/col_marginal"], atol=1e-5, rtol=0)


def test_unbalanced_transport_of_everything_is_sinkhorn(golden):
    arrays = golden("fedotp")
    sim = 1 + float(arrays["eps"]) * torch.from_numpy(arrays["cot_tp1/kernel"]).log().transpose(-1, -2)[None]
    plans = [
        transport_plan(sim, fedotp(arrays, variant, max_iter=1000, thresh=0, stop=stop).settings)
        for variant in ("cot_tp1", "sinkhorn")
        for stop in ("image", "batch")
    ]
    for other in plans[1:]:
        torch.testing.assert_close(plans[0], other, atol=1e-5, rtol=0)


def fedpgp(arrays):
    sets, n_ctx, rank = arrays[f"param0/{PREFIX}U"].shape
    given = {"mu": float(arrays["mu"]), "tau": float(arrays["temp"]), "anchor": "placeholder"}
    return methods.create("fedpgp", given | {"num_prompts": sets, "n_ctx": n_ctx, "rank": rank})


def fedpgp_params(arrays):
    return {key: torch.from_numpy(fedpgp_name(arrays, "param0/", key)) for key in ("ctx", "U", "V")}


both = pytest.mark.parametrize("name", ["fedpgp_N1", "fedpgp_N2"])


@both
def test_fedpgp(golden, backbone, class_set, settings, name):
    """With N = 2 the logits have 2 C columns, as in the authors' code."""
    arrays = golden(name)
    method, frozen = fedpgp(arrays), class_set(arrays["classnames"])
    params = fedpgp_params(arrays)
    fresh = method.init(frozen, torch.Generator())
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in params.items()}
    features = image_batch(golden, arrays, backbone)
    same_logits(torch.nn.functional.normalize(features, dim=-1), arrays["image_features_norm"])
    logits = method.classifier({key: value[None] for key, value in params.items()}, frozen)(features[None])[0]
    same_logits(logits, arrays["logits"])
    trained = check_steps(method, frozen, params, arrays, "", features, fedpgp_name, settings)
    unseen = image_batch(golden, arrays, backbone, "images_eval")
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays["logits_eval_after"])


@both
def test_both_terms_of_fedpgp(golden, backbone, class_set, name):
    arrays = golden(name)
    method, frozen = fedpgp(arrays), class_set(arrays["classnames"])
    params = {key: value[None].requires_grad_() for key, value in fedpgp_params(arrays).items()}
    features, labels = image_batch(golden, arrays, backbone), torch.from_numpy(arrays["labels"])
    batch = Batch(features[None], labels[None], torch.ones(1, len(labels), dtype=torch.bool))
    total, parts = method.loss(params, {}, frozen, batch)
    for actual, reference in ((total, "loss_total"), (parts["ce"], "loss_ce"), (parts["con"], "loss_con")):
        same_logits(actual[0], arrays[reference])
    for part in ("ce", "con"):
        gradients = torch.autograd.grad(parts[part].sum(), list(params.values()), retain_graph=True)
        for key, gradient in zip(params, gradients, strict=True):
            same_gradient(gradient[0], arrays[f"grad_{part}/{'sigma' if key == 'ctx' else key}"])


@both
def test_features_that_the_contrastive_term_compares(golden, class_set, name):
    arrays = golden(name)
    frozen = class_set(arrays["classnames"])
    params = fedpgp_params(arrays)
    sets = len(params["ctx"])
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        z_i, z_g, z_uv = (
            frozen.encode(prompt)
            for prompt in (personal_prompt(params), params["ctx"], personal_prompt(params) - params["ctx"])
        )
        z_c = frozen.placeholder(params["ctx"].shape[1])
        same_logits(unit(z_i, dim=-1).flatten(0, 1), arrays["text_features_full"])
        same_logits(unit(z_g, dim=-1).flatten(0, 1), arrays["text_features_sigma"])
        same_logits(unit(z_uv, dim=-1).flatten(0, 1), arrays["text_features_UV"])
        same_logits(unit(z_c, dim=-1).repeat(sets, 1), arrays["text_features_template"])
        pos, neg = (torch.from_numpy(arrays[f"sim_{kind}"]).mean() for kind in ("pos", "neg"))
        wanted = {"full": arrays["loss_con"], "no_positive": neg, "no_negative": 1 - pos}
        for kind, value in wanted.items():
            same_logits(contrast(z_g[None], z_i[None], z_c, float(arrays["temp"]), kind)[0], value)
