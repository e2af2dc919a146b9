"""pFedMoAP: one batch, the choice of experts, and a federation through the product's server, equal to the authors'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agreement import same_gradient, same_logits, same_params

from fedpgp import methods
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.text_backbone import freeze
from fedpgp.config import FederationSettings
from fedpgp.data.protocol import FederatedData
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.federation.messages import Features
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import Batch
from fedpgp.methods.pfedmoap import ExpertPool, attention, mixture, squared_distances

CTX = "prompt_learner.ctx"
NAMES = {"ctx": CTX} | {
    f"gate_{layer}.{part}": f"gating.W_{layer}.{part}" for layer in "qkvo" for part in ("weight", "bias")
}
"""Of each parameter in the reference."""


def create(golden, prefix="", num_experts=None):
    """Sizes and settings from the arrays; those of a trajectory are the batch's, but for the number of experts."""
    batch, start = golden("pfedmoap"), golden("pfedmoap_traj" if prefix == "init/" else "pfedmoap")
    _, heads, _, experts = batch["attention_probs"].shape
    return methods.create(
        "pfedmoap",
        {
            "n_ctx": len(start[f"{prefix}{CTX}"]),
            "num_experts": num_experts or experts,
            "local_weight": float(batch["lmbda"]),
            "scaling": float(batch["scaling"]),
            "gating_dim": len(start[f"{prefix}gating.W_q.bias"]),
            "gating_heads": heads,
            "gating_lr": None,
        },
    )


def tree_of(arrays, prefix):
    return {key: torch.from_numpy(arrays[f"{prefix}{name}"]) for key, name in NAMES.items()}


@pytest.fixture
def batch(golden, backbone, class_set):
    """Method, frozen model, start (1, ...), what the server sent, and the images of `pfedmoap.npz`."""
    arrays, method = golden("pfedmoap"), create(golden, "param0/")
    frozen = class_set(arrays["classnames"])
    experts = torch.from_numpy(arrays["nonlocal_ctx"])[None]
    received = {"experts": experts, "expert_ids": 5 + torch.arange(experts.shape[1])[None]}
    received |= method.prepare(received, frozen)
    with torch.no_grad():
        features, unseen = (
            backbone.model.encode_image(torch.from_numpy(arrays[name])) for name in ("images", "images_eval")
        )
    params = {key: value[None] for key, value in tree_of(arrays, "param0/").items()}
    labels = torch.from_numpy(arrays["labels"])
    return method, frozen, params, received, LocalData(features, labels, np.zeros(1, dtype=np.int64)), unseen


def loss_and_gradients(method, frozen, params, received, data):
    learned = {key: value.clone().requires_grad_() for key, value in params.items()}
    images = Batch(data.features[None], data.labels[None], torch.ones(1, len(data.labels), dtype=torch.bool))
    loss, _ = method.loss(learned, received, frozen, images)
    return loss[0], dict(zip(learned, torch.autograd.grad(loss.sum(), list(learned.values())), strict=True))


def test_features_and_the_mixture(golden, batch):
    arrays = golden("pfedmoap")
    method, frozen, params, received, data, _ = batch
    images, text = (torch.from_numpy(arrays[f"{name}_features_pooled"]) for name in ("image", "text"))
    unit = torch.nn.functional.normalize
    stride = arrays["image_features_norm"].shape[1] // images.shape[1]
    with torch.no_grad():
        same_logits(unit(data.features, dim=-1)[:, ::stride], images)
        same_logits(unit(frozen.encode(params["ctx"])[0], dim=-1), arrays["text_features_norm"])
        same_logits(received["expert_features"][0], arrays["nonlocal_text_features_pooled"])
        experts = torch.cat([text[None], received["expert_features"][0]])[None]
        there = torch.ones(experts.shape[:2], dtype=torch.bool)
        weights = attention(params, images[None], experts, there, method.settings)
        same_logits(weights[0].permute(3, 0, 1, 2), arrays["attention_probs"])
        mixed = mixture(params, images[None], experts, there, method.settings)[0]
    wanted = np.einsum("bd,cbd->bc", arrays["image_features_pooled"], arrays["gating_out"])
    same_logits(mixed, wanted)
    same_logits(frozen.logit_scale * mixed, arrays["logits_experts"])


def test_logits_gradients_and_steps(golden, batch, settings):
    arrays = golden("pfedmoap")
    method, frozen, params, received, data, unseen = batch
    sent = {key: received[key] for key in ("experts", "expert_ids")}
    with torch.no_grad():
        same_logits(method.classifier(params | sent, frozen)(data.features[None])[0], arrays["logits"])
    loss, gradients = loss_and_gradients(method, frozen, params, received, data)
    for name in ("loss_total", "loss_ce"):
        same_logits(loss, arrays[name])
    for key, gradient in gradients.items():
        same_gradient(gradient[0], arrays[f"grad/{NAMES[key]}"])
    losses = arrays["loss_total_per_step"]
    for steps in (1, len(losses)):
        orders = [[[np.arange(len(data.labels))] * steps]]
        sgd = Optimizer(settings["lr"], 0.0, 0.0)
        update = local_update(method, frozen, params, received, data, orders, sgd)
        same_logits(update.loss[0], losses[:steps].mean())
        for key, value in update.params.items():
            same_params(value[0], arrays[f"param{steps}/{NAMES[key]}"])
    same_logits(method.classifier(update.params | sent, frozen)(unseen[None])[0], arrays["logits_eval_after"])


def test_a_client_without_experts(golden, batch):
    """The logits of its prompt, not multiplied by lambda; the gating has no gradient."""
    arrays = golden("pfedmoap")
    method, frozen, params, received, data, _ = batch
    none = {"experts": received["experts"], "expert_ids": torch.full_like(received["expert_ids"], -1)}
    with torch.no_grad():
        logits = [method.classifier(params | sent, frozen)(data.features[None])[0] for sent in (none, {})]
    same_logits(logits[0], arrays["logits_local"])
    same_logits(logits[0], arrays["local_only/logits"])
    assert torch.equal(*logits)
    loss, gradients = loss_and_gradients(method, frozen, params, none | method.prepare(none, frozen), data)
    same_logits(loss, arrays["local_only/loss_ce"])
    same_gradient(gradients.pop("ctx")[0], arrays[f"local_only/grad/{CTX}"])
    assert not any(value.any() for value in gradients.values())


def test_the_nearest_prompts(golden):
    arrays = golden("pfedmoap")
    pool, everyone = torch.from_numpy(arrays["selection/pool"]), np.arange(len(arrays["selection/pool"]))
    same_logits(squared_distances(pool, torch.from_numpy(everyone)).sqrt(), arrays["selection/distances"])
    rule = ExpertPool(int(arrays["selection/num_experts"]), "nearest")
    server = {"pool": pool, "there": torch.ones(len(pool), dtype=torch.bool)}
    assert rule.choose(server, everyone).tolist() == arrays["selection/nearest_ids"].tolist()
    _, sent = rule.broadcast(server, {"ctx": pool[0]}, everyone[1:3])
    assert torch.equal(sent["experts"], pool[torch.from_numpy(arrays["selection/nearest_ids"][1:3])])


@pytest.fixture
def federation(golden, backbone, tmp_path):
    """The server of the trajectory's federation, and its frozen model; clients start from the authors' parameters."""
    arrays = golden("pfedmoap_traj")
    clients = range(len(arrays["data_counts"]))
    method = create(golden, "init/", int(arrays["num_experts"]))
    method.init = lambda frozen, generator: tree_of(arrays, "init/")
    features = np.concatenate([arrays[f"client{client}/image_features"] for client in clients])
    ends = np.cumsum(arrays["data_counts"])
    key = FeatureKey(manifest="m", weights="w", transform="t")
    where = Features(tmp_path / "features.arrow", key)
    write_shard(where.path, key, np.arange(len(features)), features[:, None])
    names = tuple(str(name) for name in arrays["classnames"])
    data = FederatedData(
        client_names=tuple(map(str, clients)), class_names=names, domains=("only",),
        class_sets={"all": tuple(range(len(names)))}, train_set="all",
        train_rows=tuple(np.split(np.arange(len(features)), ends[:-1])),
        train_labels=tuple(arrays[f"client{client}/labels"] for client in clients),
        evaluation_sets=(), manifest_digest="m",
    )  # fmt: skip
    settings = FederationSettings(
        rounds=int(arrays["rounds"]),
        local_epochs=int(arrays["local_epochs"]),
        batch_size=max(arrays["data_counts"]),
        participation=float(arrays["frac"]),
        lr=float(arrays["lr"]),
        momentum=float(arrays["momentum"]),
        weight_decay=float(arrays["weight_decay"]),
        block_size=2,
    )
    text = freeze(backbone, names, "a photo of a {}.", method.extra_texts)
    job = FederationJob(method, text, data, where, where, settings, seed=1, rule=method.server_rule(settings))
    backend = SerialBackend(threads=1)
    backend.load(job)
    yield Server(job, backend), text.on(range(len(names)))
    backend.close()


def test_trajectory(golden, federation):
    """Experts, losses, trained parameters, the global prompt, and logits before and after each aggregation."""
    arrays = golden("pfedmoap_traj")
    server, frozen = federation
    method, rule, state = server.job.method, server.job.rule, server.initial_state()
    everyone = np.arange(len(arrays["data_counts"]))
    unseen = torch.stack([torch.from_numpy(arrays[f"client{client}/image_features_eval"]) for client in everyone])

    def check_logits(prefix, name, tree):
        with torch.no_grad():
            logits = method.classifier(tree, frozen)(unseen)
        for client in everyone:
            same_logits(logits[client], arrays[f"{prefix}/client{client}/logits_eval_{name}"])

    for number in range(int(arrays["rounds"])):
        prefix = f"round{number}"
        before = rule.broadcast(state.server, state.shared, everyone)[1]
        result = server.step(state)
        state, own = result.state, dict(result.state.personal)
        losses = {row["client"]: row["loss"] for row in result.clients.to_pylist() if row["metric"] == "train"}
        after = rule.broadcast(state.server, state.shared, everyone)[1]
        uploads = {"ctx": state.server["pool"], **own}
        for client in everyone:
            of_client = f"{prefix}/client{client}"
            for sent, name in ((before, "experts"), (after, "experts_after_aggregation")):
                there = sent["expert_ids"][client] >= 0
                assert sent["expert_ids"][client][there].tolist() == arrays[f"{of_client}/{name}"].tolist()
            same_logits(losses[client], arrays[f"{of_client}/losses"].mean())
            for key, name in NAMES.items():
                same_params(uploads[key][client], arrays[f"{of_client}/trained/{name}"])
        same_params(state.shared["ctx"], arrays[f"{prefix}/global"])
        shared = {"ctx": state.shared["ctx"].expand(len(everyone), -1, -1)}
        check_logits(prefix, "before_aggregation", uploads | before)
        check_logits(prefix, "after_aggregation", shared | own | after)
        check_logits(prefix, "own_prompt_after_aggregation", uploads | after)
        check_logits(prefix, "global_only", method.global_model(shared | own))
