"""FedMGP: its start, terms and draws by hand, what is sent and replaced, and neutral values."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from test_method_runs import settings
from three_clients import batch, distinct_params, gradients, learned, train

from fedpgp import config, methods
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import ConfigError
from fedpgp.experiments import planning, runner
from fedpgp.federation import rule_needs
from fedpgp.federation.cohorts import sample_clients
from fedpgp.methods.base import HasGlobalModel
from fedpgp.methods.fedmgp import MODALITIES, closeness, probabilities, similarity, with_drawn
from fedpgp.storage.run_folder import RunFolder


def create(**given):
    return methods.create("fedmgp", {"groups": 3, **given})


def init(method, frozen, seed=0):
    return method.init(frozen, torch.Generator().manual_seed(seed))


def test_the_start_is_words_with_noise(bind):
    method = create(groups=40)
    frozen = bind(method)
    params = init(method, frozen)
    noise = params["ctx"] - frozen.word_vectors("a photo of a")[:2]
    assert noise.std() == pytest.approx(0.01, rel=0.05)
    assert params["image"].std() == pytest.approx(0.02, rel=0.05)
    assert init(create(groups=40, ctx_init=None), frozen)["ctx"].std() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(params["global_ctx"], params["ctx"][:2])


def test_the_diversity_terms_by_hand():
    """Directions (3, 4) / 5, (1, 0) and (0, -1): cosines 0.6, -0.8 and 0; distances 0.4 + 0.8, 0.6 + 1.8 and 1 + 1."""
    features = torch.tensor([[[[6.0, 8.0]], [[2.0, 0.0]], [[0.0, -0.5]]]])
    assert closeness(features, "cosine").item() == pytest.approx((0.6 - 0.8 + 0) / 3)
    assert closeness(features, "released_l1").item() == pytest.approx((0.6 + 1.2 + 1.0) / 3)
    assert closeness(features[:, :1], "cosine").tolist() == [[0.0]]


def test_similarities_and_probabilities_by_hand():
    """Flattened (3, 4) and (0, 2) against (1, 0) and (0, 1): 0.8 and 1; odds e^0.4 at tau = 0.5."""
    prompts, shared = torch.tensor([[[[3.0], [4.0]], [[0.0], [2.0]]]]), torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
    similar = similarity(prompts, shared)
    assert similar[0].tolist() == pytest.approx([0.8, 1.0])
    odds = math.exp(0.4)
    assert probabilities(similar, 0.5)[0].tolist() == pytest.approx([1 / (1 + odds), odds / (1 + odds)])


def rounds(method, params, received, number, count):
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    many = {key: value.expand(count, *value.shape) for key, value in params.items()}
    return method.after_training(many, received, number, generators)


def test_draws_are_without_replacement_and_as_likely_as_they_should_be():
    """Three groups with cosines 1, 0 and -1 at tau = 1. Each share of 4,000 draws is within 4 standard deviations."""
    groups = torch.tensor([[1.0, 0], [0, 1], [-1, 0]]).unsqueeze(1)
    params = {"ctx": groups, "image": groups}
    received = {key: torch.tensor([[[1.0, 0.0]]]) for key in ("global_ctx", "global_image")}
    chances = torch.tensor([1.0, 0.0, -1.0]).softmax(0).tolist()
    method, count = create(), 4000
    for number, wanted in ((1, [1 / 3] * 3), (2, chances)):
        sent = rounds(method, params, received, number, count)
        drawn = sent["drawn_ctx"]
        assert (drawn[:, 0] != drawn[:, 1]).all()
        assert not torch.equal(drawn, sent["drawn_image"])
        assert torch.equal(sent["global_ctx"], groups[drawn])
        for first, second in torch.combinations(torch.arange(3)).tolist():
            for a, b in ((first, second), (second, first)):
                expected = wanted[a] * wanted[b] / (1 - wanted[a])  # renormalised after the first draw
                share = ((drawn == torch.tensor([a, b])).all(1)).double().mean().item()
                assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_a_client_whose_prompts_are_not_finite_draws_too():
    """It is excluded afterwards; the others must not notice."""
    params = {"ctx": torch.full((3, 1, 2), math.nan), "image": torch.full((3, 1, 2), math.inf)}
    received = {key: torch.ones(2, 1, 2) for key in ("global_ctx", "global_image")}
    assert rounds(create(temperature=0.01), params, received, 2, 5)["drawn_ctx"].shape == (5, 2)


def test_what_is_sent_and_replaced_by_hand():
    """Client 0 draws groups 2 and 0, client 1 groups 1 and 2; the global prompts are 100 and 200."""
    prompts = torch.arange(6.0).view(2, 3, 1, 1)
    params = {"ctx": prompts, "image": prompts + 10}
    drawn = {key: torch.tensor([[2, 0], [1, 2]]) for key in ("drawn_ctx", "drawn_image")}
    sent = with_drawn(params, drawn)
    assert sent["global_ctx"].flatten(1).tolist() == [[2.0, 0.0], [4.0, 5.0]]
    assert sent["global_image"].flatten(1).tolist() == [[12.0, 10.0], [14.0, 15.0]]
    shared = {key: torch.tensor([100.0, 200.0]).view(2, 1, 1) for key in ("global_ctx", "global_image")}
    after = create().after_aggregation({**params, **drawn}, shared)
    assert after["ctx"].flatten(1).tolist() == [[200.0, 1.0, 100.0], [3.0, 100.0, 200.0]]
    assert after["image"].flatten(1).tolist() == [[200.0, 11.0, 100.0], [13.0, 100.0, 200.0]]
    assert prompts.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_one_group_without_diversity_is_shallow_maple_with_a_free_image_prompt(bind, features, labels):
    """MaPLe with coupling weights 0 and one token: its bias is the image prompt. The diversity of one group is 0."""
    method = create(groups=1, shared_groups=1, n_ctx=1, n_ctx_image=1)
    maple = methods.create("fedmaple", {"n_ctx": 1, "depth": 1})
    frozen, images = bind(method), batch(features["pixels"], labels)
    params, received = distinct_params(method, frozen)
    bias = params["image"].squeeze(2)  # (K, 1, W)
    coupled = {
        "ctx": params["ctx"],
        "coupling.weight": bias.new_zeros(len(bias), 1, bias.shape[-1], frozen.width),
        "coupling.bias": bias,
    }
    own, other = learned(params), learned(coupled)
    loss, parts = method.loss(own, received, frozen, images)
    expected, _ = maple.loss(other, {}, frozen, images)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert not parts["diversity"].any()
    found, wanted = gradients(loss, own), gradients(expected, other)
    torch.testing.assert_close(found["ctx"], wanted["ctx"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["image"].squeeze(2), wanted["coupling.bias"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("diversity", "closer"), [("cosine", False), ("released_l1", True)])
def test_the_term_separates_groups_and_the_released_one_pulls_them_together(bind, features, labels, diversity, closer):
    method = create(diversity=diversity, diversity_weight=100, ctx_init=None)
    frozen = bind(method)
    images = batch(features["pixels"], labels)
    params, received = distinct_params(method, frozen)
    trained = train(method, frozen, features["pixels"], labels).params

    def cosine(tree):
        with torch.no_grad():
            return create(ctx_init=None).loss(tree, received, frozen, images)[1]["diversity"]

    assert ((cosine(trained) > cosine(params)) == closer).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": 1}, "method fedmgp: shared_groups=2 is above groups=1"),
        ({"temperature": 0}, "method fedmgp: temperature: "),
        ({"diversity": "l3"}, "method fedmgp: diversity: "),
    ],
)
def test_settings_that_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        create(**given)


def test_more_tokens_than_the_words_have_are_refused(bind):
    with pytest.raises(ConfigError, match="method fedmgp: n_ctx: 5 is more than the 4 tokens of ctx_init"):
        init(create(n_ctx=5), bind(create()))


def test_there_is_no_global_model_and_no_scaffold(tmp_path):
    assert not isinstance(create(), HasGlobalModel)
    tree = {
        "data": {"name": "shapes"},
        "partition": {"clients": 4, "unseen_clients": 0.5},
        "method": {"name": "fedmgp"},
        "backbone": {"name": "tiny", "weights": "random"},
        "storage": {"root": str(tmp_path)},
    }
    with pytest.raises(ConfigError, match="method fedmgp has no model for a client that never trains, because ctx, "):
        planning.plan(config.parse(tree))
    federation = config.FederationSettings.model_validate({"server": {"name": "scaffold"}})
    with pytest.raises(ConfigError, match=r"scaffold: .* and method fedmgp trains none"):
        rule_needs.rule_of(create(), federation)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_two_of_three_clients_take_part(tmp_path):
    """Their drawn groups are the global prompts, and only these; the third keeps all of its own."""
    wanted = settings(tmp_path, {"name": "fedmgp", "groups": 3}, rounds=2)
    federation = wanted.federation.model_copy(update={"participation": 0.67})
    wanted = wanted.model_copy(update={"federation": federation})
    store = RunFolder.open(runner.run(wanted, False, RunCallback(), threading.Event()))
    before, after = (store.state_at(number) for number in (1, 2))
    taking_part = sample_clients(wanted.seed, 2, 3, federation).tolist()
    assert len(taking_part) == 2
    for client in range(3):
        for own, shared, drawn in MODALITIES:
            groups, index = after.personal[own][client], after.personal[drawn][client]
            if client in taking_part:
                assert torch.equal(groups[index], after.shared[shared])
                (kept,) = {0, 1, 2} - set(index.tolist())
                assert not torch.equal(groups[kept], before.personal[own][client][kept])  # it was trained
                assert (groups[kept] != after.shared[shared]).any(-1).all()
            else:
                assert torch.equal(groups, before.personal[own][client])
