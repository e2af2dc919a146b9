"""Local training in a worker: classes of each client, random numbers of a step, and what methods do around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp import methods
from fedpgp.clip import model
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.text_backbone import freeze
from fedpgp.config import AttackSettings, BackboneSettings, FederationSettings
from fedpgp.core.seeding import torch_generator
from fedpgp.data.federated import FederatedData
from fedpgp.federation.client import LocalData, Optimizer, local_update
from fedpgp.federation.messages import Call, Features, to_arrays
from fedpgp.federation.training import TRAINING
from fedpgp.federation.worker import FederationJob, FederationWorker
from fedpgp.methods.base import Phase

NAMES = ("cat", "dog", "old car", "tree", "red house")
LABELS = ([0, 0, 3], [1, 2, 1, 2], [3, 0], [3, 3])  # of each client, within the classes of the task
TASK = (0, 1, 2, 4)  # of the names


@pytest.fixture(scope="module")
def text():
    return freeze(model.load(BackboneSettings(name="tiny", weights="random")), NAMES, "a {}.")


def made(folder, text, method, own=True, **federation):
    """A worker whose clients have random features of these labels."""
    count = sum(map(len, LABELS))
    width = text.tower.projection.weight.shape[0]
    values = torch.randn(count, 1, width, generator=torch.Generator().manual_seed(1)).numpy()
    key = FeatureKey(manifest="m", weights="w", transform="t")
    write_shard(folder / "features.arrow", key, np.arange(count), values)
    rows = np.split(np.arange(count), np.cumsum([len(labels) for labels in LABELS])[:-1])
    data = FederatedData(
        client_names=("a", "b", "c", "d"), class_names=NAMES, domains=("only",), class_sets={"all": TASK},
        train_set="all", train_rows=tuple(rows), train_labels=tuple(np.array(labels) for labels in LABELS),
        evaluation_sets=(), manifest_digest="m", own_classes=own,
    )  # fmt: skip
    settings = FederationSettings(**{"rounds": 1, "local_epochs": 1, "batch_size": 2, "lr": 0.1, **federation})
    where = Features(folder / "features.arrow", key)
    job = FederationJob(method, text, data, where, where, settings, seed=1)
    return FederationWorker(job, torch.device("cpu")), torch.from_numpy(values[:, 0])


def trained(worker, clients=(0, 1, 2, 3), purpose=TRAINING):
    job = worker.job
    shared = job.method.init(job.text.on(TASK), torch_generator(1, "init"))
    call = Call(1, np.array(clients), {})
    return worker._trainer.update(call, shared, {}, purpose, job.federation.local_epochs), shared


def test_a_client_trains_as_if_there_were_its_own_classes_alone(tmp_path, text):
    """The classes of c are those of a, d has one of them, and b has others: three sets in one block."""
    method = methods.create("promptfl", {"n_ctx": 2})
    worker, features = made(tmp_path, text, method)
    together, shared = trained(worker)
    for client, labels in enumerate(LABELS):
        classes = sorted({TASK[label] for label in labels})
        assert worker.job.data.training_classes(client).tolist() == classes
        own = torch.tensor([classes.index(TASK[label]) for label in labels])
        data = LocalData(features[worker.job.data.train_rows[client]], own, np.array([0]))
        orders = [worker._trainer.orders(TRAINING, 0, 1, np.array([client]), 1)]
        start = {"ctx": shared["ctx"].unsqueeze(0)}
        optimizer = Optimizer(0.1, 0.9, 5e-4)
        alone = local_update(method, text.on(classes), start, shared, data, orders, optimizer)
        torch.testing.assert_close(together.params["ctx"][client], alone.params["ctx"][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.loss[client], alone.loss[0], atol=1e-5, rtol=0)
    assert together.loss[3] == 0  # one class: nothing to tell apart


def test_chunks_share_the_classes_of_one_client(tmp_path, text):
    method = methods.create("promptfl", {"n_ctx": 2})
    worker, _ = made(tmp_path, text, method)
    chunks = [(one.start, one.stop) for one in worker._trainer._chunks(np.arange(4))]
    assert chunks == [(0, 1), (1, 2), (2, 4)]
    assert [(one.start, one.stop) for one in worker._trainer._chunks(np.array([0, 2, 3]))] == [(0, 3)]
    (_, data), (frozen, of_d) = (worker._trainer.local_data(TRAINING, 1, np.array(own)) for own in ([1], [2, 3]))
    assert data.own is None
    assert frozen.names == ("cat", "red house")
    assert of_d.own.tolist() == [[True, True], [False, True]]
    everything, _ = made(tmp_path, text, method, own=False)
    assert [(one.start, one.stop) for one in everything._trainer._chunks(np.arange(4))] == [(0, 4)]
    small, _ = made(tmp_path, text, method, own=False, chunk_size=3)
    assert [(one.start, one.stop) for one in small._trainer._chunks(np.arange(4))] == [(0, 3), (3, 4)]


def test_an_attacker_exchanges_labels_among_its_own_classes(tmp_path, text):
    attack = AttackSettings(kind="label_flip", fraction=0.5)
    worker, _ = made(tmp_path, text, methods.create("promptfl", {"n_ctx": 2}), attack=attack)
    for client in worker.job.attackers.tolist():
        own = sorted(set(LABELS[client]))
        _, data = worker._trainer.local_data(TRAINING, 1, np.array([client]))
        assert data.labels.tolist() == [len(own) - 1 - own.index(label) for label in LABELS[client]]


class Hooked:
    """Learns `a`; a step adds its draw to the gradient, and what is sent is twice the result."""

    name, paper, image_inputs, required_towers = "hooked", "none", "pooled", frozenset({"text"})
    shared_keys = frozenset({"a"})
    phases = (Phase(frozenset({"a"})),)
    extra_texts, supports_unseen_classes = (), True

    def init(self, frozen, generator):
        return {"a": torch.zeros(1)}

    def draws(self, frozen, generator):
        return {"noise": torch.randn(1, generator=generator)}

    def prepare(self, received, frozen):
        return {"doubled": 2 * received["a"] + 2}

    def loss(self, params, received, frozen, batch):
        return (params["a"] * (batch.draws["noise"] + received["doubled"])).sum(1), {}

    def after_training(self, params, received, round, generators):
        offset = torch.stack([torch.rand(1, generator=generator) for generator in generators])
        return {"a": 2 * params["a"] + offset}

    def classifier(self, params, frozen):
        raise NotImplementedError


def test_what_a_method_does_around_its_steps(tmp_path, text):
    """Gradient: draw + 2, as received is 0. Steps of client a: two; b: two; c and d: one. Without momentum."""
    worker, _ = made(tmp_path, text, Hooked(), own=False, momentum=0.0, weight_decay=0.0)
    both, _ = trained(worker)
    for client, steps in enumerate((2, 2, 1, 1)):
        generator = torch_generator(1, "draws of batches", 1, client)
        noise = sum(torch.randn(1, generator=generator).item() for _ in range(steps))
        offset = torch.rand(1, generator=torch_generator(1, "after_training", 1, client)).item()
        assert both.params["a"][client].item() == pytest.approx(-0.2 * (noise + 2 * steps) + offset, rel=1e-5)
        alone, _ = trained(worker, (client,))
        assert torch.equal(alone.params["a"][0], both.params["a"][client])
    tuned, _ = trained(worker, (2,), "finetune")  # nothing is sent afterwards
    generator = torch_generator(1, "draws of finetune", 1, 2)
    assert tuned.params["a"].item() == pytest.approx(-0.1 * (torch.randn(1, generator=generator).item() + 2), rel=1e-5)


def test_a_number_of_steps_instead_of_epochs(tmp_path, text):
    """Client b has two batches in an epoch, so the third is the first of a second one."""
    worker, _ = made(tmp_path, text, Hooked(), own=False, local_epochs=2, local_steps=3)
    for client, images in enumerate(map(len, LABELS)):
        (order,) = worker._trainer.orders(TRAINING, 0, 1, np.array([client]), 2)
        assert len(order) == 3
        seen = np.concatenate(order)
        assert set(seen[:images]) == set(range(images))
    (tuned,) = worker._trainer.orders("finetune", 0, 1, np.array([1]), 2)
    assert len(tuned) == 4


def test_memory_counts_one_client(tmp_path, text):
    worker, _ = made(tmp_path, text, methods.create("promptfl", {"n_ctx": 2}))
    shared = to_arrays(worker.job.method.init(worker.job.text.on(TASK), torch_generator(1, "init")))
    one, two = (worker.memory(Call(1, np.arange(count), {}), shared) for count in (1, 2))
    assert two > one
