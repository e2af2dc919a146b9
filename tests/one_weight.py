"""The smallest federation: three clients with six numbers that train one or two weights, for hand-worked rounds."""

from __future__ import annotations

import numpy as np
import torch

from fedpgp import server_rules
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.config import FederationSettings
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.federation.messages import Features
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import Phase

IMAGES = [[1.0, 3.0], [5.0], [-4.0, -4.0, -4.0]]  # one number per image, three clients


class Sum:
    """Predicts whether the image is above a + b; loss = mean (a + b - x)^2 / 2, its gradient a + b - mean(x).

    Parts of the loss, by name: `square` (the loss itself) and `cut` (a + b).
    """

    image_inputs = "pooled"
    supports_unseen_classes = True

    def __init__(self, shared):
        self.shared_keys = frozenset(shared)
        self.phases = (Phase(frozenset({"a", "b"})),)

    def init(self, frozen, generator):
        return {"a": torch.zeros(1), "b": torch.zeros(1)}

    def loss(self, params, received, frozen, batch):
        cut = params["a"] + params["b"]
        squared = (cut - batch.features[..., 0]).square() / 2
        loss = (squared * batch.mask).sum(1) / batch.mask.sum(1).clamp(min=1)
        return loss, {"square": loss, "cut": cut[:, 0]}

    def classifier(self, params, frozen):
        cut = (params["a"] + params["b"]).unsqueeze(1)
        return lambda features: torch.cat([cut - features, features - cut], dim=-1)


class NoText:
    """A stand-in for the frozen text tower."""

    num_classes = 2

    def to(self, device, dtype):
        return self

    def on(self, classes):
        return self


def one_weight(folder, shared, images=IMAGES, rule=None, **changes):
    """The job of `Sum` with these shared weights, without momentum and weight decay; `rule` as federation.server."""
    count = sum(map(len, images))
    rows = [np.array(part) for part in np.split(np.arange(count), np.cumsum([len(own) for own in images])[:-1])]
    values = np.array([x for own in images for x in own], dtype=np.float32)
    key = FeatureKey(manifest="m", weights="w", transform="t")
    write_shard(folder / "features.arrow", key, np.arange(count), values.reshape(count, 1, 1))
    labels = (values > 0).astype(np.int64)
    images_of_all = EvaluationSet(
        split="test", class_set="all", rows=np.arange(count), labels=labels, domains=np.zeros(count, dtype=np.int32),
        members=tuple(rows),
    )  # fmt: skip
    data = FederatedData(
        client_names=tuple(f"client {client}" for client in range(len(images))), class_names=("low", "high"),
        domains=("only",), class_sets={"all": (0, 1)}, train_set="all", train_rows=tuple(rows),
        train_labels=tuple(labels[own] for own in rows), evaluation_sets=(images_of_all,), manifest_digest="m",
    )  # fmt: skip
    settings = {"rounds": 2, "local_epochs": 1, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, **changes}
    federation = FederationSettings(**settings, **({"server": rule} if rule else {}))
    where = Features(folder / "features.arrow", key)
    own = server_rules.create(federation.server.name, federation.server.settings)
    return FederationJob(Sum(shared), NoText(), data, where, where, federation, seed=1, rule=own)
