"""FedTPG equal to the authors' code: every stage of its network, steps, deeper networks, and whole federations."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from agreement import same_gradient, same_logits, same_params
from test_federation import client_data
from test_methods import check_steps, image_batch

from fedpgp import methods
from fedpgp.config import FederationSettings
from fedpgp.core.tree import stack
from fedpgp.federation.client import LocalData, Optimizer, initial_momentum, local_update
from fedpgp.federation.learning_rates import factors
from fedpgp.federation.state import average, weighted_sum
from fedpgp.methods.base import Batch
from fedpgp.methods.fedtpg import attend, attention, feed_forward, layer_norm

NET = "prompt_learner.meta_net."
CROSS = "encoder.cross_attend_blocks"


def reference_name(key):
    """Name of the array of a parameter in the reference, and which third of it the parameter is, if it is one."""
    if key == "queries":
        return f"{NET}soft_prompt", None
    *path, layer, kind = key.split(".")
    number = path[0].removeprefix("block_") if path[0].startswith("block_") else None
    attends, feeds = (f"{CROSS}.{{}}", f"{CROSS}.1") if number is None else (f"transformer.layers.{number}.{{}}",) * 2
    if path[-1] == "feed":
        part = {"norm": 0, "in": 1, "out": 3}[layer]
        return f"{NET}{feeds.format(1)}.net.{part}.{kind}", None
    module = f"{NET}{attends.format(0)}."
    if layer in "qkv":
        return f"{module}fn.{'in_proj_' + kind}", "qkv".index(layer)
    return module + {"norm": "norm.", "norm_names": "norm_context.", "out": "fn.out_proj."}[layer] + kind, None


def reference(arrays, prefix, key):
    """The array of a parameter; None: there is none. Equal widths have one matrix of queries, keys and values."""
    name, third = reference_name(key)
    if third is None:
        return arrays.get(prefix + name)
    separate = f"{prefix}{name.replace('in_proj_weight', 'qkv'[third] + '_proj_weight')}"
    if name.endswith("weight") and separate in arrays:
        return arrays[separate]
    whole = arrays.get(prefix + name)
    return None if whole is None else np.split(whole, 3)[third]


def check_tree(tree, arrays, prefix, same):
    """All parameters that the arrays have; of a large one they may have the first rows only."""
    compared = 0
    whole = {key: reference(arrays, prefix, key) for key in tree}
    for key, value in tree.items():
        expected = whole[key]
        if expected is None:
            name, third = reference_name(key)
            cut = [arrays[one] for one in arrays if one.startswith(f"{prefix}{name}#rows") and not third]
            expected = cut[0] if cut else value[:0].detach().numpy()
        same(value[: len(expected)], expected)
        compared += len(expected) > 0
    return compared


def network(arrays, method, *prefixes):
    """The parameters of a method, from the first of the prefixes that has one."""
    found = {key: [reference(arrays, one, key) for one in prefixes] for key in sorted(method.shared_keys)}
    return {
        key: torch.from_numpy(next(one for one in values if one is not None).copy()) for key, values in found.items()
    }


def create(arrays, depth=0, prefix="param0/"):
    return methods.create("fedtpg", {"n_ctx": len(arrays[f"{prefix}{NET}soft_prompt"]), "depth": depth})


@torch.no_grad()
def test_every_stage_of_the_network(golden, class_set):
    arrays = golden("fedtpg")
    method, frozen = create(arrays), class_set(arrays["classnames"])
    params, heads = stack(network(arrays, method, "param0/"), 1), method.settings.heads
    fresh = method.init(frozen, torch.Generator())
    assert {key: value.shape for key, value in fresh.items()} == {key: value.shape[1:] for key, value in params.items()}
    same_logits(frozen.bare_names(), arrays["text_features_names_raw"])
    names = torch.nn.functional.normalize(frozen.bare_names(), dim=-1)
    same_logits(names, arrays["text_features_names"])
    queries = layer_norm(params, "cross.norm", params["queries"])
    inputs = layer_norm(params, "cross.norm_names", names)
    same_logits(queries[0], arrays["soft_prompt_normed"])
    same_logits(inputs[0], arrays["context_normed"])
    weights = attention(params, "cross", queries, inputs, heads)
    same_logits(weights.mean(1)[0], arrays["attention_weights_mean_over_heads"])
    attended = attend(params, "cross", queries, inputs, heads)
    same_logits(attended[0], arrays["attention_out"])
    same_logits(feed_forward(params, "feed", attended)[0], arrays["feedforward_out"])
    context = method.context(params, frozen)
    same_logits(context[0], arrays["encoder_out"])
    same_logits(context, arrays["context"])
    text = frozen.encode(context)[0]
    same_logits(text, arrays["text_features_raw"])
    same_logits(torch.nn.functional.normalize(text, dim=-1), arrays["text_features_norm"])


def test_logits_and_steps(golden, backbone, class_set, settings):
    arrays = golden("fedtpg")
    method, frozen = create(arrays), class_set(arrays["classnames"])
    params = network(arrays, method, "param0/")
    features, unseen = (image_batch(golden, arrays, backbone, name) for name in ("images", "images_eval"))
    same_logits(torch.nn.functional.normalize(features, dim=-1), arrays["image_features_norm"])
    same_logits(method.classifier(stack(params, 1), frozen)(features[None])[0], arrays["logits"])
    assert arrays["loss_ce"] == arrays["loss_total"]
    trained = check_steps(method, frozen, params, arrays, "", features, reference, settings)
    same_logits(method.classifier(trained, frozen)(unseen[None])[0], arrays["logits_eval_after"])


@torch.no_grad()
def test_the_same_network_asked_for_other_classes(golden, backbone, class_set):
    arrays = golden("fedtpg")
    method = create(arrays)
    params = stack(network(arrays, method, "param0/"), 1)
    frozen = class_set(arrays["classnames"][arrays["novel/classes"]])
    same_logits(method.context(params, frozen), arrays["novel/context"])
    same_logits(frozen.encode(method.context(params, frozen))[0], arrays["novel/text_features_raw"])
    features = image_batch(golden, arrays, backbone, "images_eval")
    same_logits(method.classifier(params, frozen)(features[None])[0], arrays["novel/logits_eval"])


def test_deeper_networks(golden, backbone, class_set):
    """Every `depthN` of the set."""
    arrays = golden("fedtpg")
    depths = sorted({int(found[1]) for key in arrays if (found := re.match(r"depth(\d+)/", key))})
    assert depths
    frozen, features = class_set(arrays["classnames"]), image_batch(golden, arrays, backbone)
    labels = torch.from_numpy(arrays["labels"])
    for depth in depths:
        method, prefix = create(arrays, depth), f"depth{depth}/"
        params = stack(network(arrays, method, f"{prefix}param0/", "param0/"), 1)
        params = {key: value.requires_grad_() for key, value in params.items()}
        fresh = method.init(frozen, torch.Generator())
        assert {key: value.shape for key, value in fresh.items()} == {k: value.shape[1:] for k, value in params.items()}
        same_logits(method.context(params, frozen), arrays[f"{prefix}context"])
        same_logits(method.classifier(params, frozen)(features[None])[0], arrays[f"{prefix}logits"])
        batch = Batch(features[None], labels[None], torch.ones(1, len(labels), dtype=torch.bool))
        loss, _ = method.loss(params, {}, frozen, batch)
        same_logits(loss[0], arrays[f"{prefix}loss_ce"])
        gradients = torch.autograd.grad(loss.sum(), list(params.values()))
        found = {key: gradient[0] for key, gradient in zip(params, gradients, strict=True)}
        assert check_tree(found, arrays, f"{prefix}grad/", same_gradient) > len(found) // 2


@pytest.mark.parametrize("prefix", ["", "official/"])
def test_trajectory(golden, class_set, prefix):
    """Clients that train among their own classes, as one batch with the others masked, and the unweighted mean.

    `official`: with the momentum that each client keeps, and the cosine schedule.
    """
    arrays = golden("fedtpg_traj")
    names, clients = arrays["classnames"], len(arrays["data_counts"])
    method, frozen = create(arrays, prefix="init/"), class_set(names)
    shared, own = network(arrays, method, "init/"), [arrays[f"client{client}/own_classes"] for client in range(clients)]
    federation = FederationSettings(
        rounds=int(arrays[f"{prefix}rounds"]),
        lr=float(arrays[f"{prefix}lr"]),
        momentum=float(arrays[f"{prefix}momentum"]),
        weight_decay=float(arrays[f"{prefix}weight_decay"]),
        lr_schedule="cosine" if prefix else "constant",
        keep_momentum=bool(prefix),
    )
    kept = stack(initial_momentum(method, shared), clients) if prefix else {}
    sgd = Optimizer(federation.lr, federation.momentum, federation.weight_decay)
    data, counts = client_data(arrays, range(clients))
    labels = torch.cat([torch.from_numpy(own[client][arrays[f"client{client}/labels"]]) for client in range(clients)])
    counted = torch.from_numpy(np.stack([np.isin(np.arange(len(names)), classes) for classes in own]))
    data = LocalData(data.features, labels, data.starts, counted)
    orders = [[np.arange(count)] * int(arrays["local_epochs"]) for count in counts]
    for number in range(federation.rounds):
        name = f"{prefix}round{number}"
        assert sorted(arrays.get(f"{name}/participants", np.arange(clients))) == list(range(clients))
        rate = factors(federation, number + 1, np.ones(clients))
        update = local_update(
            method, frozen, stack(shared, clients), shared, data, [orders], sgd, number + 1, [rate], kept=kept
        )
        kept = update.momentum
        mean = average([weighted_sum(update.params, torch.ones(clients))], float(clients), shared)
        for client in range(clients):
            same_logits(update.loss[client], arrays[f"{name}/client{client}/losses"].mean())
            trained = {key: value[client] for key, value in update.params.items()}
            compared = check_tree(trained, arrays, f"{name}/client{client}/trained/", same_params)
            assert compared == (0 if prefix else len(shared))
        shared = mean
        assert check_tree(shared, arrays, f"{name}/global/", same_params) == len(shared)
        for client, classes in enumerate(own):
            features = torch.from_numpy(arrays[f"client{client}/image_features_eval"])[None]
            for asked, bound in (("own", class_set(names[classes])), ("all", frozen)):
                logits = method.classifier(stack(shared, 1), bound)(features)[0]
                same_logits(logits, arrays[f"{name}/client{client}/logits_eval_{asked}"])
