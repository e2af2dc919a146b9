"""DP-FPL: steps with equation 4, with and without noise, and rounds of algorithm 1, equal to the authors' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_gradient, same_logits, same_params
from test_federation import golden_tree
from test_methods import PREFIX, image_batch

from fedpgp import methods
from fedpgp.config import FederationSettings
from fedpgp.core.tree import stack
from fedpgp.federation.client import LocalData, Optimizer, local_update, schedule
from fedpgp.methods.base import Batch
from fedpgp.methods.dp_fpl import factors
from fedpgp.server_rules.base import Received

NAMES = {"ctx": ("global_ctx", ...), "local": ("local_ctx", ...)}
IN_STEP = {key: (f"{PREFIX}{name}", part) for key, (name, part) in NAMES.items()}


def create(golden, n_ctx, variant, rounds, batch):
    arrays = golden("dp_fpl")
    given = {"n_ctx": n_ctx, "rank": int(arrays["rank"])}
    if variant.endswith("noise"):
        given |= {key: float(arrays[name]) for key, name in (("epsilon", "epsilon"), ("clip_norm", "norm_thresh"))}
        given |= {"delta": float(arrays["delta"]), "noise_rounds": rounds, "noise_batch": batch}
    return methods.create("dp_fpl", given)


def recorded(arrays, prefixes, suffix=""):
    """The random numbers of a step of some clients, as the method takes them."""
    names = [name for name in ("power_start", "noise_u", "noise_v") if f"{prefixes[0]}{name}{suffix}" in arrays]
    return {
        name: torch.stack([torch.from_numpy(arrays[f"{prefix}{name}{suffix}"]) for prefix in prefixes])
        for name in names
    }


def gradients(method, params, frozen, batch):
    own = {key: value.clone().requires_grad_() for key, value in params.items()}
    loss, _ = method.loss(own, {}, frozen, batch)
    return loss, dict(zip(own, torch.autograd.grad(loss.sum(), list(own.values())), strict=True))


@pytest.mark.parametrize("variant", ["paper", "paper_noise"])
def test_steps(golden, backbone, class_set, settings, variant):
    arrays, prefix, lr = golden("dp_fpl"), f"{variant}/", settings["dp_fpl"]["lr"]
    params = golden_tree(arrays, f"{prefix}param0/", IN_STEP)
    labels = torch.from_numpy(arrays["labels"])
    method = create(golden, len(params["ctx"]), variant, int(arrays["rounds_for_std"]), len(labels))
    frozen = class_set(arrays["classnames"])
    fresh = method.init(frozen, torch.Generator())
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape for key, value in params.items()}
    first = recorded(arrays, [prefix], "0")
    drawn = method.draws(frozen, torch.Generator())
    assert {key: value.shape for key, value in drawn.items()} == {key: value.shape[1:] for key, value in first.items()}
    assert method.settings.noise_std == pytest.approx(float(arrays.get(f"{prefix}std_local", 0)), rel=1e-12)

    features, unseen = (image_batch(golden, arrays, backbone, name) for name in ("images", "images_eval"))
    own = {key: value[None] for key, value in params.items()}
    same_logits(method.classifier(own, frozen)(features[None])[0], arrays[f"{prefix}logits"])
    u, v = factors(own["local"], first["power_start"])
    same_params(u[0], arrays[f"{prefix}u"])
    same_params(v[0], arrays[f"{prefix}v"])
    batch = Batch(features[None], labels[None], torch.ones(1, len(labels), dtype=torch.bool), draws=first)
    loss, found = gradients(method, own, frozen, batch)
    losses = arrays[f"{prefix}loss_total_per_step"]
    same_logits(loss[0], losses[0])
    for key, (name, _) in IN_STEP.items():
        same_gradient(found[key][0], arrays[f"{prefix}grad/{name}"])
    data = LocalData(features, labels, np.zeros(1, dtype=np.int64))
    for steps in (1, len(losses)):
        draws = iter([recorded(arrays, [prefix], str(step)) for step in range(steps)])
        orders, sgd = [[[np.arange(len(labels))] * steps]], Optimizer(lr, 0.0, 0.0)
        update = local_update(
            method, frozen, own, {}, data, orders, sgd, draws=lambda clients, draws=draws: next(draws)
        )
        same_logits(update.loss[0], losses[:steps].mean())
        for key, value in golden_tree(arrays, f"{prefix}param{steps}/", IN_STEP).items():
            same_params(update.params[key][0], value)
    same_logits(method.classifier(update.params, frozen)(unseen[None])[0], arrays[f"{prefix}logits_eval_after"])


@pytest.mark.parametrize("variant", ["algorithm1", "algorithm1_noise"])
def test_rounds_of_one_batch(golden, class_set, variant):
    """The authors' number of rounds counts passes over all batches; here each batch is a round."""
    arrays, noisy = golden("dp_fpl_traj"), variant.endswith("noise")
    clients = len([key for key in arrays if key.endswith("/images")])
    each, lr = int(arrays["batches_per_round"]), float(arrays["lr"])
    batches = [[arrays[f"client{client}/batch{number}"] for client in range(clients)] for number in range(each)]
    largest = max(len(rows) for part in batches for rows in part)
    params = golden_tree(arrays, f"{variant}/init/", NAMES)
    method = create(golden, len(params["ctx"]), variant, int(arrays["rounds"]), largest)
    frozen, params = class_set(arrays["classnames"]), stack(params, clients)
    rule = method.server_rule(FederationSettings(lr=lr, local_steps=1))
    assert rule.weighting == "equal"
    if noisy:
        assert method.settings.noise_std == pytest.approx(float(arrays[f"{variant}/std_local"]), rel=1e-12)
        assert rule.std / clients == pytest.approx(lr * float(arrays[f"{variant}/std_global"]), rel=1e-12)
    silent = create(golden, method.settings.n_ctx, "", 1, 1).server_rule(FederationSettings())
    features, labels = (
        [torch.from_numpy(arrays[f"client{client}/{name}"]) for client in range(clients)]
        for name in ("image_features", "labels")
    )
    counts = np.array([len(part) for part in labels])
    data = LocalData(torch.cat(features), torch.cat(labels), np.cumsum(counts) - counts)
    sgd = Optimizer(lr, float(arrays["momentum"]), float(arrays["weight_decay"]))
    for step in range(int(arrays["rounds"]) * each):
        prefixes = [f"{variant}/step{step}/client{client}/" for client in range(clients)]
        draws, orders = recorded(arrays, prefixes), [[rows] for rows in batches[step % each]]
        first = next(schedule(data, orders))
        batch = Batch(first.features, first.labels, first.mask, draws=draws)
        loss, found = gradients(method, params, frozen, batch)
        update = local_update(method, frozen, params, {}, data, [orders], sgd, draws=lambda clients, draws=draws: draws)
        for client, prefix in enumerate(prefixes):
            for key, value in golden_tree(arrays, f"{prefix}start/", NAMES).items():
                same_params(params[key][client], value)
            same_logits(loss[client], arrays[f"{prefix}loss"])
            same_gradient(found["ctx"][client], arrays[f"{prefix}uploaded_grad_global"])
            same_gradient(found["local"][client], arrays[f"{prefix}grad_local"])
        mean = {"ctx": update.params["ctx"].mean(0)}
        received = Received(np.arange(clients), torch.ones(clients).double(), mean, {}, clients, torch.Generator())
        _, shared = silent.aggregate({}, {"ctx": params["ctx"][0]}, received)
        noise = torch.from_numpy(arrays[f"{variant}/step{step}/server/noise"]) if noisy else 0.0
        params = {"ctx": (shared["ctx"] - lr * noise).repeat(clients, 1, 1), "local": update.params["local"]}
        for client, prefix in enumerate(prefixes):
            for key, value in golden_tree(arrays, f"{prefix}trained/", NAMES).items():
                same_params(params[key][client], value)
            if (expected := arrays.get(f"{prefix}logits_eval")) is not None:
                unseen = torch.from_numpy(arrays[f"client{client}/image_features_eval"])
                same_logits(method.classifier(params, frozen)(unseen[None])[client], expected)
