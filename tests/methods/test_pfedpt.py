"""pFedPT: the frame by hand, both phases against torch's own modules, and whole rounds of clients and server."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest
import timm
import torch
from three_clients import COUNTS, NAMES, batch, distinct_params, gradients, train
from torch import nn

from fedpgp import methods
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.images import normalise
from fedpgp.clip.text_backbone import names_only
from fedpgp.config import FederationSettings, ResourceSettings
from fedpgp.core.errors import ConfigError
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.measures import split_name
from fedpgp.federation.messages import Features
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods import pfedpt

SMALL = {"model": "test_resnet", "pad_size": 2, "prompt_epochs": 1, "prompt_lr": 0.5, "prompt_momentum": 0.5}
FRAME = frozenset(pfedpt.FRAME)


class Centred(nn.Module):
    """Batch normalisation of the raw pixels, then a linear map of each channel's mean."""

    def __init__(self, num_classes):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, num_classes)

    def forward(self, images):
        return self.head(self.norm(images).mean((2, 3)))


@pytest.fixture
def centred(monkeypatch):
    """`Centred` as if timm had it, on pixels between 0 and 1."""
    monkeypatch.setattr(timm, "is_model", lambda name: name == "centred")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, num_classes: Centred(num_classes))
    monkeypatch.setattr(pfedpt, "_network", pfedpt._network.__wrapped__)

    def make(**settings):
        plain = {"model": "centred", "image_size": 4, "mean": (0, 0, 0), "std": (1, 1, 1), "pad_size": 1}
        return methods.create("pfedpt", {**plain, **settings})

    return make


@pytest.fixture(scope="module")
def method():
    return methods.create("pfedpt", SMALL)


@pytest.fixture(scope="module")
def classes():
    return names_only(NAMES, "a {}").on(range(len(NAMES)))


def test_the_frame_by_hand():
    """4 x 4 pixels, width 1: up and down have all four columns, left and right the two rows between them."""
    sides = {"up": 1.0, "down": 2.0, "left": 3.0, "right": 4.0}
    own = {key: torch.full((3, 1, 4) if key in ("up", "down") else (3, 2, 1), value) for key, value in sides.items()}
    wanted = [[1, 1, 1, 1], [3, 0, 0, 4], [3, 0, 0, 4], [2, 2, 2, 2]]
    assert pfedpt.frame(own).tolist() == [wanted] * 3


def test_the_start(method, classes):
    """The frame is N(0, 1); the network timm's own start; all of it a function of the generator."""
    first, again, other = (method.init(classes, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["base.fc.weight"], other["base.fc.weight"])
    values = torch.cat([first[key].flatten() for key in FRAME])
    assert len(values) == 3 * (32 * 32 - 28 * 28)
    assert values.mean().abs() < 0.1
    assert values.std() == pytest.approx(1, abs=0.1)
    assert first["base.fc.weight"].shape == (5, first["base.fc.weight"].shape[1])
    assert first.keys() - method.shared_keys == FRAME


def test_both_phases_equal_torchs_own(method, classes, features, labels):
    """The first client's two epochs in each phase, with a module in training mode and two torch optimizers."""
    update = train(method, classes, features["pixels"], labels, [0])
    params, _ = distinct_params(method, classes)
    network = timm.create_model("test_resnet", num_classes=5)
    network.load_state_dict(
        {key.removeprefix("base."): value[0] for key, value in params.items() if key not in FRAME}, strict=False
    )
    sides = {key: params[key][0].clone().requires_grad_() for key in FRAME}
    images, marks = normalise(features["pixels"], method.image)[: COUNTS[0]], labels[: COUNTS[0]]
    for own in (
        torch.optim.SGD(sides.values(), lr=0.5, momentum=0.5),
        torch.optim.SGD(network.parameters(), lr=0.003, momentum=0.9, weight_decay=5e-4),
    ):
        for rows in [slice(4), slice(4, 6)] * 2:
            loss = nn.functional.cross_entropy(network(images[rows] + pfedpt.frame(sides)), marks[rows])
            own.zero_grad()
            loss.backward()
            own.step()
    for key, value in {**sides, **{f"base.{key}": value for key, value in network.state_dict().items()}}.items():
        if key in update.params:
            torch.testing.assert_close(update.params[key][0], value.detach(), atol=1e-5, rtol=1e-4)
    assert "base.conv1.1.running_var" in update.params
    assert not any("num_batches_tracked" in key for key in update.params)


def test_a_block_of_clients_equals_each_alone(method, classes, features, labels):
    """With 6, 4 and 9 images in batches of 4: some run out, and the last batch of the third is a single image."""
    block = train(method, classes, features["pixels"], labels)
    for client in range(len(COUNTS)):
        alone = train(method, classes, features["pixels"], labels, [client])
        torch.testing.assert_close(block.loss[client], alone.loss[0], atol=1e-5, rtol=0)
        for key, value in alone.params.items():
            torch.testing.assert_close(block.params[key][client], value[0], atol=1e-5, rtol=0)


def test_without_a_frame_it_is_the_network_alone(method, classes, features, labels):
    bare = methods.create("pfedpt", {**SMALL, "use_prompt": False})
    params, _ = distinct_params(method, classes)
    shared = {key: value for key, value in params.items() if key in method.shared_keys}
    images = features["pixels"][None, :5]
    silent = method.classifier(method.global_model(params), classes)(images)
    assert torch.equal(silent, bare.classifier(shared, classes)(images))
    assert not torch.equal(silent, method.classifier(params, classes)(images))
    assert bare.init(classes, torch.Generator()).keys() == bare.shared_keys
    assert [phase.keys for phase in bare.phases] == [method.phases[1].keys]


def test_each_clients_loss_has_a_gradient_for_its_own_frame_only(method, classes, features, labels):
    params, received = distinct_params(method, classes)
    sides = {key: params[key].requires_grad_() for key in FRAME}
    loss, _ = method.loss(params, received, classes, batch(features["pixels"], labels))
    for gradient in gradients(loss[1], sides).values():
        assert gradient[1].abs().max() > 0
        assert not gradient[[0, 2]].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet_18"}, "model: timm has no such model; did you mean resnet18 or "),
        ({"pad_size": 17}, "pad_size 17 is more than half of image_size 32"),
        ({"model": "test_vit", "image_size": 40}, r"model test_vit does not take images of 40 x 40 \(.*divisible"),
    ],
)
def test_invalid_settings_are_rejected_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        methods.create("pfedpt", settings)


@pytest.fixture
def federation(tmp_path):
    """Server and clients on the given images (n, 3, S, S) and labels, `counts` of them each."""

    def make(method, images, labels, counts, backend=None, **changes):
        rows = tuple(np.split(np.arange(len(images)), np.cumsum(counts)[:-1]))
        key = FeatureKey(manifest="m", weights="none", transform=method.image.digest, variant="pixels")
        path = tmp_path / "pixels.arrow"
        write_shard(path, key, np.arange(len(images)), images.numpy()[:, None])
        labels = labels.numpy()
        pool = EvaluationSet(
            split="test", class_set="all", rows=np.arange(len(images)), labels=labels,
            domains=np.zeros(len(images), np.int32), members=rows,
        )  # fmt: skip
        data = FederatedData(
            client_names=tuple(map(str, range(len(counts)))), class_names=tuple(NAMES), domains=("only",),
            class_sets={"all": tuple(range(len(NAMES)))}, train_set="all", train_rows=rows,
            train_labels=tuple(labels[own] for own in rows), evaluation_sets=(pool,), manifest_digest="m",
        )  # fmt: skip
        settings = {"rounds": 1, "local_epochs": 1, "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0, **changes}
        where, text = Features(path, key), names_only(NAMES, "a {}")
        job = FederationJob(method, text, data, where, where, FederationSettings(**settings), seed=1)
        backend = backend or SerialBackend(threads=1)
        backend.load(job)
        return Server(job, backend)

    return make


def test_running_statistics_are_averaged_by_counts(centred, federation):
    """Two white images and three black ones, a step each, momentum 0.1 from mean 0 and variance 1.

    Means: 0.1 and 0, averaged (2 * 0.1 + 3 * 0) / 5 = 0.04. Variances: 0.9 and 0.9. No gradient, no decay moves them.
    """
    images = torch.cat([torch.full((2, 3, 4, 4), 255), torch.zeros(3, 3, 4, 4)]).to(torch.uint8)
    server = federation(centred(use_prompt=False), images, torch.arange(5), [2, 3], weight_decay=0.5)
    (result,) = server.run(server.initial_state())
    assert result.state.personal == {}
    assert result.state.shared["base.norm.running_mean"].tolist() == pytest.approx([0.04] * 3)
    assert result.state.shared["base.norm.running_var"].tolist() == pytest.approx([0.9] * 3)
    assert result.row.bytes_up == 2 * 4 * (5 * 3 + 5 + 4 * 3)  # all of the network, weights and statistics


def test_a_single_image_is_normalised_by_the_running_statistics(centred, federation):
    images = torch.full((3, 3, 4, 4), 255, dtype=torch.uint8)
    server = federation(centred(use_prompt=False), images, torch.arange(3), [2, 1])
    (result,) = server.run(server.initial_state())
    # Only the first client renews them: mean 0.1, weighted 2 of 3.
    assert result.state.shared["base.norm.running_mean"].tolist() == pytest.approx([0.2 / 3] * 3)


def test_a_round_is_three_epochs_of_the_frame_and_one_of_the_network(centred, federation):
    """White images and rates of almost nothing: four passes update the mean m of images and frame to (1 - 0.9^4) m."""
    images = torch.full((4, 3, 4, 4), 255, dtype=torch.uint8)
    method = centred(prompt_epochs=3, prompt_lr=1e-9)
    server = federation(method, images, torch.arange(4), [2, 2], lr=1e-9)
    (result,) = server.run(server.initial_state())
    own = {key: result.state.personal[key][0] for key in FRAME}
    wanted = (1 - 0.9**4) * (1 + pfedpt.frame(own).mean((1, 2)))
    torch.testing.assert_close(result.state.shared["base.norm.running_mean"], wanted, atol=1e-5, rtol=0)


def test_the_network_rests_while_the_frame_learns(centred, federation):
    images = torch.randint(256, (6, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    server = federation(centred(), images, torch.arange(6) % 5, [3, 3], lr=1e-9)
    start = server.initial_state()
    before = {key: value.clone() for key, value in {**start.shared, **start.personal}.items()}
    (result,) = server.run(start)
    torch.testing.assert_close(result.state.shared["base.head.weight"], before["base.head.weight"], atol=1e-6, rtol=0)
    for key, value in result.state.personal.items():
        assert (value - before[key]).abs().amax() > 1e-3
        assert not torch.equal(value[0], value[1])


def test_blocks_are_cut_to_one_client(federation, method, features, labels):
    sent = []

    class Counting(SerialBackend):
        def map(self, name, calls, common=None, work=()):
            sent.append((name, [len(call.clients) for call in calls], set(common)))
            return super().map(name, calls, common, work)

    server = federation(method, features["pixels"], labels, COUNTS, Counting(threads=1), block_size=10)
    (result,) = server.run(server.initial_state())
    keys = set(method.shared_keys)
    assert sent == [("train", [1, 1, 1], keys), ("evaluate", [1, 1, 1], keys)]
    assert "test/local" in result.row.metrics


def test_the_network_without_a_frame_is_tested_if_asked_for(federation, method, features, labels):
    """One model for all clients: equal counts on the whole evaluation set, and nothing else changes."""
    images = features["pixels"]
    server, asked = (federation(method, images, labels, COUNTS, evaluate_global=wanted) for wanted in (False, True))
    plain, both = (next(each.run(each.initial_state())) for each in (server, asked))
    added = both.row.metrics.keys() - plain.row.metrics.keys()
    assert {"test/local_global", "test/all_global", "test/all_global_f1"} <= added
    assert all(split_name(key.removeprefix("test/"))[0] in ("local_global", "all_global") for key in added)
    assert {key: value for key, value in both.row.metrics.items() if key not in added} == plain.row.metrics
    rows = both.clients.filter(pc.field("metric") == "all_global")
    assert len(set(rows["correct"].to_pylist())) == 1
    assert rows["total"].to_pylist() == [sum(COUNTS)] * 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_actors_give_the_bits_of_the_serial_backend(federation, method, features, labels):
    from fedpgp.federation.backends.actors import ActorPool

    pool = ActorPool(ResourceSettings(actors=2))
    try:
        actual, expected = (
            next(server.run(server.initial_state())) for server in (
                federation(method, features["pixels"], labels, COUNTS, backend) for backend in (None, pool)
            )
        )  # fmt: skip
    finally:
        pool.close()
    assert actual.clients.equals(expected.clients)
    for part in ("shared", "personal"):
        left, right = (getattr(result.state, part) for result in (actual, expected))
        assert all(torch.equal(left[key], right[key]) for key in left)
