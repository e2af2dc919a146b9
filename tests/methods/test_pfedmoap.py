"""pFedMoAP: the gating by hand, the choice of experts, neutral values, and whole runs on any backend."""

from __future__ import annotations

import math
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from rounds import check_same_bits, run
from test_method_runs import settings as settings_of
from three_clients import COUNTS, NAMES, batch, distinct_params, gradients, learned, train

from fedpgp import methods
from fedpgp.clip.feature_cache import FeatureKey, write_shard
from fedpgp.clip.text_backbone import freeze
from fedpgp.config import FederationSettings, ResourceSettings
from fedpgp.core import memory
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import ConfigError
from fedpgp.core.tree import select
from fedpgp.data.federated import EvaluationSet, FederatedData
from fedpgp.experiments import planning, runner
from fedpgp.federation import rule_needs
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.messages import Features
from fedpgp.federation.server import Server
from fedpgp.federation.worker import FederationJob
from fedpgp.methods import pfedmoap
from fedpgp.methods.pfedmoap import ExpertPool, PFedMoAPSettings, attention, mixture
from fedpgp.server_rules.base import Received
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder


def create(**settings):
    return methods.create("pfedmoap", {"n_ctx": 3, "num_experts": 3, **settings})


class TestGating:
    """d = 2 in two heads of one coordinate, or in one head."""

    params: ClassVar = {
        f"gate_{layer}.{part}": value[None]
        for layer, weight, bias in (
            ("q", [[1, 0], [0, 1]], [0, 0]),
            ("k", [[1, 0], [0, 1]], [0, 0]),
            ("v", [[2, 0], [0, 2]], [1, 0]),
            ("o", [[0, 1], [1, 0]], [0, 3]),
        )
        for part, value in (("weight", torch.tensor(weight).float()), ("bias", torch.tensor(bias).float()))
    }
    image = torch.tensor([[[1.0, 1.0]]])
    experts = torch.tensor([[[[0.0, 0.0]], [[math.log(3) / 2, 0.0]], [[50.0, 50.0]]]])  # X = 3, C = 1

    def weights(self, there, heads=2):
        settings = PFedMoAPSettings(scaling=2.0, gating_heads=heads)
        return settings, attention(self.params, self.image, self.experts, torch.tensor([there]), settings)

    def test_weights_and_mixture(self):
        """Scores of head 1 are 0 and ln 3, of head 2 both 0; the third expert does not exist.

        Values are (1, 0) and (1 + ln 3, 0): 1 + 3/4 ln 3 and 0 after the heads; W_o swaps them and adds (0, 3).
        """
        settings, weights = self.weights([True, True, False])
        torch.testing.assert_close(weights[0, :, 0, :, 0], torch.tensor([[0.25, 0.75, 0], [0.5, 0.5, 0]]))
        mixed = mixture(self.params, self.image, self.experts, torch.tensor([[True, True, False]]), settings)
        assert mixed.item() == pytest.approx(0 + (1 + 0.75 * math.log(3)) + 3)

    def test_one_expert_alone(self):
        _, weights = self.weights([True, False, False], heads=1)
        assert weights.flatten().tolist() == [1, 0, 0]


def test_only_every_s_th_coordinate_counts():
    features = torch.tensor([[3.0, 0.0, 4.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(pfedmoap._pool(features, 3), torch.tensor([[0.6, 0.8, 0.0]]))


@pytest.mark.parametrize(
    ("joint", "given", "width"), [(512, None, 128), (1024, None, 128), (128, None, 32), (64, None, 16), (64, 64, 64)]
)
def test_width_of_the_gating(joint, given, width):
    assert create(gating_dim=given)._width(joint) == width


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gating_dim": 24}, "gating_dim: 24 does not divide the features' width 64; give method.gating_dim=16"),
        ({"gating_heads": 6}, "gating_heads: 6 do not divide the gating's width 16; give method.gating_heads=4"),
        ({"num_experts": 0}, "num_experts: .*greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit(bind, given, said):
    frozen = bind(create())
    with pytest.raises(ConfigError, match=f"method pfedmoap: {said}"):
        create(**given).init(frozen, torch.Generator())


def test_without_experts_it_trains_like_promptfl_bit_for_bit(bind, features, labels):
    """With X = 1, and for clients that have none; their gating changes by weight decay alone."""
    plain = methods.create("promptfl", {"n_ctx": 3})
    images, start = features["pooled"], plain.init(bind(plain), torch.Generator().manual_seed(1))
    wanted = train(plain, bind(plain), images, labels)
    for method in (create(num_experts=1), Lonely(PFedMoAPSettings(n_ctx=3, num_experts=3))):
        params, _ = distinct_params(method, bind(method))
        assert torch.equal(params["ctx"][0], start["ctx"])
        update = train(method, bind(method), images, labels)
        assert torch.equal(update.params["ctx"], wanted.params["ctx"])
        assert torch.equal(update.loss, wanted.loss)
        change = update.params["gate_v.weight"] / params["gate_v.weight"] - 1
        assert -0.01 < change.min() < change.max() < 0


class Lonely(pfedmoap.PFedMoAP):
    """A server that has no prompts yet."""

    def server_rule(self, federation):
        rule = super().server_rule(federation)
        rule.aggregate = lambda server, shared, received: (server, shared)
        return rule


def test_an_expert_gets_no_gradient_and_others_change_the_loss(bind, features, labels):
    method = create()
    params, received = distinct_params(method, bind(method))
    own = learned(params)
    received["expert_features"].requires_grad_(False)
    images = batch(features["pooled"], labels)
    loss, _ = method.loss(own, received, bind(method), images)
    assert all(gradient.any() for gradient in gradients(loss, own).values())
    fewer = received | {"expert_ids": received["expert_ids"].index_fill(1, torch.tensor([1]), -1)}
    assert (method.loss(own, fewer, bind(method), images)[0] - loss).abs().min() > 1e-4


def test_experts_that_do_not_exist_do_not_count(bind, features):
    """As if one expert less had been sent."""
    method = create()
    frozen = bind(method)
    params, received = distinct_params(method, frozen)
    ids = received["expert_ids"].index_fill(1, torch.tensor([1]), -1)
    padded = params | {"experts": received["experts"], "expert_ids": ids}
    shorter = params | {"experts": received["experts"][:, :1], "expert_ids": ids[:, :1]}
    images = features["pooled"][None]
    with torch.no_grad():
        torch.testing.assert_close(
            method.classifier(padded, frozen)(images), method.classifier(shorter, frozen)(images)
        )


def test_few_images_at_a_time(bind, features, monkeypatch):
    method = create()
    frozen = bind(method)
    params, received = distinct_params(method, frozen)
    tree = params | select(received, {"experts", "expert_ids"})
    with torch.no_grad():
        whole = method.classifier(tree, frozen)(features["pooled"][None])
        monkeypatch.setattr(pfedmoap, "SCORES_PER_CHUNK", 1)
        torch.testing.assert_close(method.classifier(tree, frozen)(features["pooled"][None]), whole)


def test_each_distinct_prompt_is_encoded_once(bind):
    method = create()
    frozen = bind(method)
    _, received = distinct_params(method, frozen)
    encoded, encode = [], frozen.encode
    frozen.encode = lambda ctx, *rest: encoded.append(len(ctx)) or encode(ctx, *rest)
    features = method.prepare(received, frozen)["expert_features"]
    assert (received["expert_ids"] >= 0).sum() == 6
    assert sum(encoded) == 3
    ids = received["expert_ids"].tolist()
    here, there = ids[0].index(2), ids[1].index(2)
    assert torch.equal(features[0, here], features[1, there])
    with torch.no_grad():
        alone = torch.nn.functional.normalize(encode(received["experts"][0, here][None])[0], dim=-1)[:, ::4]
    torch.testing.assert_close(features[0, here], alone)


class TestServer:
    """Prompts of one number; four clients."""

    shared: ClassVar = {"ctx": torch.zeros(1, 1)}

    def after(self, *rounds, selection="nearest", num_experts=3, clients=4):
        """The rule and its state after rounds of {client: (prompt, images)}."""
        rule = ExpertPool(num_experts, selection)
        server, shared = rule.init(self.shared, clients), self.shared
        for number, sent in enumerate(rounds):
            received = Received(
                clients=np.array(list(sent)),
                weights=torch.tensor([float(images) for _, images in sent.values()], dtype=torch.float64),
                mean={},
                stack={"ctx": torch.tensor([[[float(value)]] for value, _ in sent.values()])},
                num_clients=clients,
                generator=torch.Generator().manual_seed(number),
            )
            server, shared = rule.aggregate(server, shared, received)
        return rule, server, shared

    def test_nobody_has_experts_in_the_first_round(self):
        rule, server, shared = self.after()
        common, own = rule.broadcast(server, shared, np.array([1, 3]))
        assert common == shared
        assert own["expert_ids"].tolist() == [[-1, -1]] * 2
        assert own["experts"].shape == (2, 2, 1, 1)
        assert rule.sent_bytes(own) == 0

    def test_nearest(self):
        """Client 3 comes late: it has no prompt to compare. Client 1 is 5 from client 0 and 3 from client 2."""
        rule, server, shared = self.after({0: (1, 1), 1: (6, 2), 2: (9, 1)})
        _, own = rule.broadcast(server, shared, np.arange(4))
        assert own["expert_ids"].tolist() == [[1, 2], [2, 0], [1, 0], [-1, -1]]
        assert own["experts"].flatten(1).tolist() == [[6, 9], [9, 1], [6, 1], [0, 0]]
        assert rule.sent_bytes(own) == 6 * 4
        assert shared["ctx"].item() == (1 + 2 * 6 + 9) / 4

    def test_the_last_prompt_of_each_counts(self):
        rule, server, shared = self.after({0: (1, 1), 1: (6, 1), 2: (9, 1)}, {1: (0, 5), 3: (8, 5)})
        assert rule.choose(server, np.arange(4)).tolist() == [[1, 3], [0, 3], [3, 0], [2, 0]]
        assert shared["ctx"].item() == 4
        assert server["pool"].flatten().tolist() == [1, 0, 9, 8]

    def test_a_single_prompt_is_no_expert_of_its_owner(self):
        rule, server, _ = self.after({2: (1, 1)})
        assert rule.choose(server, np.arange(4)).tolist() == [[-1, -1]] * 4

    def test_equal_distances_by_number(self):
        rule, server, _ = self.after(dict.fromkeys(range(4), (2, 1)))
        assert rule.choose(server, np.array([1])).tolist() == [[0, 2]]

    @pytest.mark.parametrize(("clients", "num_experts", "most"), [(4, 1, 0), (4, 10, 3), (1, 10, 0)])
    def test_most_experts(self, clients, num_experts, most):
        sent = {client: (client, 1) for client in range(clients)}
        rule, server, shared = self.after(sent, num_experts=num_experts, clients=clients)
        _, own = rule.broadcast(server, shared, np.arange(clients))
        assert own["expert_ids"].shape == (clients, most)
        assert (own["expert_ids"] >= 0).all()
        assert rule.sent_bytes(own) == 4 * clients * most

    def test_random_is_one_list_for_all_and_for_the_whole_run(self):
        everyone = {client: (client, 1) for client in range(8)}
        rounds = [everyone, {3: (5, 1)}, everyone]
        chosen = []
        for number in (1, 2, 3):
            rule, server, _ = self.after(*rounds[:number], selection="random", clients=8)
            ids = rule.choose(server, np.arange(8))
            chosen.append(ids.tolist())
            order = server["place"].argsort().tolist()
            for client in range(8):
                assert ids[client].tolist() == [other for other in order if other != client][:2]
        assert chosen[0] == chosen[1] == chosen[2]
        assert order not in (sorted(order), sorted(order, reverse=True))

    def test_memory_and_estimate(self, monkeypatch):
        """10,000 clients with 32 KiB: the pool, a copy, and nine prompts for each; the updates of a round."""
        rule, federation = ExpertPool(10, "nearest"), FederationSettings(participation=0.01)
        shared = {"ctx": torch.zeros(16, 512)}
        wanted = (2 + 9) * 10_000 * 2**15 + 100 * 2**15 + rule.working_bytes(100, shared)
        assert rule_needs.server_bytes(rule, federation, 10_000, shared) == wanted
        monkeypatch.setattr(memory, "total", lambda: 2 * 2**30)
        with pytest.raises(ConfigError) as refused:
            rule_needs.check(rule, federation, 10_000, shared)
        assert str(refused.value) == (
            "the method's server rule pfedmoap: what it keeps of 10,000 clients take about 3.4 GiB of memory on the "
            "server, and this machine has 2.0 GiB; give fewer clients, or another method"
        )


@pytest.fixture
def job(backbone, tmp_path):
    """Make a federation of nine clients with 2 to 4 images of noise each."""

    def make(changes=None, **settings):
        method = create(**settings)
        counts = [2 + client % 3 for client in range(9)]
        rows = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        labels = [own % len(NAMES) for own in rows]
        key = FeatureKey(manifest="m", weights="w", transform="t")
        where = Features(tmp_path / "features.arrow", key)
        noise = np.random.default_rng(1).standard_normal((sum(counts), 1, 64), np.float32)
        write_shard(where.path, key, np.arange(sum(counts)), noise)
        test = EvaluationSet(
            split="test", class_set="all", rows=np.arange(sum(counts)), labels=np.concatenate(labels),
            domains=np.zeros(sum(counts), np.int32), members=tuple(rows),
        )  # fmt: skip
        data = FederatedData(
            client_names=tuple(map(str, range(9))), class_names=tuple(NAMES), domains=("only",),
            class_sets={"all": tuple(range(len(NAMES)))}, train_set="all", train_rows=tuple(rows),
            train_labels=tuple(labels), evaluation_sets=(test,), manifest_digest="m",
        )  # fmt: skip
        given = {"rounds": 4, "local_epochs": 2, "batch_size": 2, "lr": 0.1, "block_size": 2, **(changes or {})}
        federation = FederationSettings.model_validate(given)
        text = freeze(backbone, NAMES, "a photo of a {}.", method.extra_texts)
        return FederationJob(method, text, data, where, where, federation, seed=2, rule=method.server_rule(federation))

    return make


@pytest.fixture(scope="module")
def pool(ray_cluster):
    pool = ActorPool(ResourceSettings(actors=2))
    yield pool
    pool.close()


HARD = {
    "plain": {},
    "absent": {"participation": 0.4, "dropout": 0.3},
    "empty rounds": {"participation": 0.05, "sampling": "poisson", "rounds": 12},
    "attacked": {"attack": {"kind": "sign_flip", "fraction": 0.3}, "evaluate_before_aggregation": True},
    "fine-tuned": {"finetune_epochs": 1, "chunk_size": 1},
}
EVERY_WAY = pytest.mark.parametrize("changes", HARD.values(), ids=HARD)


@EVERY_WAY
@pytest.mark.parametrize("selection", ["nearest", "random"])
def test_actors_give_the_bits_of_one_process(job, pool, changes, selection):
    made = job(changes, selection=selection)
    serial, parallel = run(made), run(made, backend=pool)
    check_same_bits(serial[-1].state, parallel[-1].state)
    assert all(left.clients.equals(right.clients) for left, right in zip(serial, parallel, strict=True))
    assert serial[-1].state.server["there"].any()


@EVERY_WAY
@pytest.mark.parametrize("selection", ["nearest", "random"])
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(job, tmp_path, changes, selection):
    made = job(changes, selection=selection)
    whole = run(made)[-1].state
    backend = SerialBackend(threads=1)
    backend.load(made)
    server, reference = Server(made, backend), None
    state = server.initial_state()
    for _ in range(2):
        result = server.step(state)
        state = result.state
        reference = checkpoint.save(tmp_path, state, "digest", result.changed, reference)
    backend.close()
    check_same_bits(run(made, checkpoint.load(tmp_path, reference, "digest"))[-1].state, whole)


def test_bytes_of_the_rounds(job):
    """Prompts of 3 x 64 float32; no experts in round 1, two for each client then. Padding and owners do not count."""
    prompt = 4 * 3 * 64
    first, second, *_ = run(job())
    assert first.row.bytes_down == first.row.bytes_up == second.row.bytes_up == 9 * prompt
    assert second.row.bytes_down == 9 * 3 * prompt


def test_with_one_expert_a_run_is_promptfl(job):
    """Its server works on the updates themselves, so the average may differ in the last bit."""
    one = run(job(num_experts=1))[-1].state
    made = job()
    plain = methods.create("promptfl", {"n_ctx": 3})
    fedavg = FederationJob(
        plain, made.text, made.data, made.train_features, made.test_features, made.federation, seed=2
    )
    torch.testing.assert_close(one.shared, run(fedavg)[-1].state.shared, atol=1e-5, rtol=0)
    several = run(made)
    assert not torch.equal(several[-1].state.shared["ctx"], one.shared["ctx"])


def test_a_lost_client_and_one_that_never_took_part_have_no_prompt_in_the_pool(job):
    made = job({"participation": 0.4, "dropout": 0.6, "rounds": 1})
    result = run(made)[-1]
    events = {row["client"]: row["event"] for row in result.clients.to_pylist() if row["metric"] == "train"}
    arrived = sorted(client for client, event in events.items() if event is None)
    assert 0 < len(arrived) < len(events)
    assert result.state.server["there"].nonzero().flatten().tolist() == arrived


@pytest.mark.parametrize("more", [{}, {"partition": {"clients": 3, "unseen_clients": 0.34}}])
def test_a_whole_run_among_own_classes(tmp_path, more):
    """Also with clients that never train, which get the global prompt and no experts."""
    wanted = settings_of(tmp_path, {"name": "pfedmoap", "n_ctx": 2})
    tree = wanted.model_dump(mode="json") | more
    tree["protocol"] |= {"train_classes": "own"}
    tree["federation"] |= {"rounds": 2, "evaluate_global": True}
    rows = RunFolder.open(
        runner.run(type(wanted).model_validate(tree), False, callback=RunCallback(), stop=threading.Event())
    ).rounds()
    assert {"test/local", "test/base", "test/novel", "test/base_global", "test/novel_global"} <= rows[-1].metrics.keys()
    assert rows[1].bytes_down > rows[0].bytes_down
    assert ("new_client/local_adapted" in rows[-1].metrics) == bool(more)


def test_differential_privacy_is_rejected(tmp_path):
    wanted = settings_of(tmp_path, {"name": "pfedmoap", "n_ctx": 2})
    tree = wanted.model_dump(mode="json") | {"privacy": {"level": "client", "noise_multiplier": 1.0}}
    needs = "the method's server rule pfedmoap needs every update: its sensitivity is unknown; give another method"
    with pytest.raises(ConfigError, match=f"privacy: {needs}"):
        planning.plan(type(wanted).model_validate(tree))


def test_the_global_model_is_that_of_promptfl(bind, features):
    method, plain = create(), methods.create("promptfl", {"n_ctx": 3})
    params, _ = distinct_params(method, bind(method))
    with torch.no_grad():
        ours = method.classifier(method.global_model(params), bind(method))(features["pooled"][None])
        theirs = plain.classifier({"ctx": params["ctx"]}, bind(plain))(features["pooled"][None])
    assert torch.equal(ours, theirs)
    assert ours.shape == (len(COUNTS), sum(COUNTS), len(NAMES))
