"""DP-FPL: factors, clipping and noise by hand, its gradient against the projection, and what it refuses."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from test_method_runs import RUNS, settings
from three_clients import batch, distinct_params, drawing, gradients, learned

from fedpgp import config, methods
from fedpgp.config import FederationSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import ConfigError
from fedpgp.experiments import planning, runner
from fedpgp.methods.base import cosine_logits, cross_entropy
from fedpgp.methods.dp_fpl import NoisyMean, clipped, combined, factors, gram_schmidt
from fedpgp.server_rules.base import Received
from fedpgp.storage.run_folder import RunFolder

NOISE = {"epsilon": 2.0, "delta": math.exp(-4), "clip_norm": 3.0, "noise_rounds": 4, "noise_batch": 6}
"""sqrt(4 * 4) / 2 * 3 / 6 = 1."""


def create(**given):
    return methods.create("dp_fpl", {"n_ctx": 4, "rank": 2, **given})


def test_gram_schmidt_by_hand():
    """(3, 4) / 5; of (5, 10) the part along it, 11, is removed: (-1.6, 1.2) / 2."""
    columns = torch.tensor([[[3.0, 5.0], [4.0, 10.0]]])
    expected = torch.tensor([[[0.6, -0.8], [0.8, 0.6]]])
    torch.testing.assert_close(gram_schmidt(columns), expected, atol=1e-6, rtol=0)
    assert not gram_schmidt(torch.zeros(1, 3, 2)).any()


def test_factors_are_orthonormal():
    generator = torch.Generator().manual_seed(0)
    prompts, start = (torch.randn(3, *shape, generator=generator) for shape in ((5, 12), (12, 4)))
    u, v = factors(0.02 * prompts, start)
    for product in (u.mT @ u, v @ v.mT):
        torch.testing.assert_close(product, torch.eye(4).expand(3, 4, 4), atol=2e-5, rtol=0)


def test_clipping_by_hand():
    """(3, 4) has length 5 and (0.3, 0.4) length 0.5; nothing is lengthened, and 0 stays 0."""
    gradients = torch.tensor([[[3.0], [4.0]], [[0.3], [0.4]], [[0.0], [0.0]]])
    expected = [[1.5, 2.0], [0.3, 0.4], [0.0, 0.0]]
    torch.testing.assert_close(clipped(gradients, 2.5).flatten(1), torch.tensor(expected))


def full_gradients(method, frozen, params, images):
    """Those of cross-entropy for p_G and p_i themselves."""
    own = learned(params)
    text = frozen.encode(own["ctx"] + own["local"])
    return gradients(cross_entropy(cosine_logits(images.features, text, frozen.logit_scale), images), own)


@pytest.fixture
def world(bind, features, labels):
    """Makes the frozen model, parameters and a batch with random numbers for a method."""

    def made(method):
        frozen = bind(method)
        return (
            frozen,
            distinct_params(method, frozen)[0],
            batch(features["pooled"], labels, drawing(method, frozen)(range(3))),
        )

    return made


def test_without_noise_the_gradient_is_the_projection_onto_the_tangent_space(world):
    """G P_v + P_u G - P_u G P_v for the local prompt, G for the global one."""
    method = create()
    frozen, params, images = world(method)
    own, wanted = learned(params), full_gradients(method, frozen, params, images)
    found = gradients(method.loss(own, {}, frozen, images)[0], own)
    u, v = factors(params["local"], images.draws["power_start"])
    full, p_u, p_v = wanted["local"], u @ u.mT, v.mT @ v
    torch.testing.assert_close(found["local"], full @ p_v + p_u @ full - p_u @ full @ p_v, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["ctx"], wanted["ctx"], atol=1e-5, rtol=1e-4)
    assert (found["local"] - full).abs().max() > 1e-3
    assert torch.linalg.matrix_rank(found["local"], rtol=1e-4).tolist() == [4, 4, 4]  # 2 R


def test_with_the_rank_of_the_prompt_the_gradient_is_the_whole_one(world):
    method = create(rank=4)
    frozen, params, images = world(method)
    own, wanted = learned(params), full_gradients(method, frozen, params, images)
    found = gradients(method.loss(own, {}, frozen, images)[0], own)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-3)


def test_noise_is_added_to_the_clipped_gradients_of_the_factors(world):
    """Its part in the gradient of p_i is that of equation 4; p_G gets none. Without noise everything is the clipped."""
    method = create(**NOISE)
    frozen, params, images = world(method)
    assert method.settings.noise_std == pytest.approx(1.0)
    silent = {**images.draws, "noise_u": torch.zeros(3, 4, 2), "noise_v": torch.zeros(3, 2, frozen.width)}
    found = []
    for draws in (images.draws, silent):
        own = learned(params)
        loss, _ = method.loss(own, {}, frozen, batch_with(images, draws))
        found.append(gradients(loss, own))
    noisy, quiet = found
    u, v = factors(params["local"], images.draws["power_start"])
    expected = combined(u, v, images.draws["noise_u"], images.draws["noise_v"])
    torch.testing.assert_close(noisy["local"] - quiet["local"], expected, atol=1e-5, rtol=0)
    assert torch.equal(noisy["ctx"], quiet["ctx"])
    tight = create(**NOISE | {"clip_norm": 0.01, "noise_batch": 1})
    own = learned(params)
    clipped_ones = gradients(tight.loss(own, {}, frozen, batch_with(images, silent))[0], own)
    torch.testing.assert_close(clipped_ones["ctx"].flatten(1).norm(dim=1), torch.full((3,), 0.01))


def batch_with(images, draws):
    return type(images)(images.features, images.labels, images.mask, draws=draws)


def test_the_noise_has_the_promised_variance(bind):
    method = create(**NOISE | {"epsilon": 1.0})
    generator = torch.Generator().manual_seed(0)
    drawn = [method.draws(bind(method), generator) for _ in range(50)]
    assert drawn[0].keys() == {"power_start", "noise_u", "noise_v"}
    assert create().draws(bind(method), generator).keys() == {"power_start"}
    for key, std in (("power_start", 1.0), ("noise_u", 2.0), ("noise_v", 2.0)):
        assert_variance(torch.stack([one[key] for one in drawn]), std)


def assert_variance(values, std):
    low, high = chi2.ppf([1e-4, 1 - 1e-4], values.numel())
    assert low < float(values.double().square().sum()) / std**2 < high


def received(seed=0, clients=4):
    mean = {"ctx": torch.full((100, 50), 2.0)}
    return Received(np.arange(2), torch.ones(2), mean, {}, clients, torch.Generator().manual_seed(seed))


def test_the_noise_of_the_server():
    """lr 0.1 and s = 1: 0.1 on the sum, and for 2 of 4 clients 0.05 on their mean; the same for the same generator."""
    federation = FederationSettings(lr=0.1, local_steps=1, participation=0.5)
    rule, shared = create(**NOISE).server_rule(federation), {"ctx": torch.zeros(100, 50)}
    assert (rule.std, rule.participation) == (pytest.approx(0.1), 0.5)
    first, again, other = (rule.aggregate({}, shared, received(seed))[1]["ctx"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert_variance(first - 2, 0.05)
    assert_variance(first - other, 0.05 * 2**0.5)
    silent = create().server_rule(FederationSettings())
    assert torch.equal(silent.aggregate({}, shared, received())[1]["ctx"], received().mean["ctx"])
    assert isinstance(silent, NoisyMean)
    assert silent.weighting == "equal"


def test_the_server_s_model_is_the_global_prompt(world):
    method = create()
    frozen, params, images = world(method)
    promptfl = methods.create("promptfl", {"n_ctx": 4})
    alone = method.classifier(method.global_model(params), frozen)(images.features)
    assert torch.equal(alone, promptfl.classifier({"ctx": params["ctx"]}, frozen)(images.features))


def test_steps_are_plain_whatever_the_federation_has():
    (phase,) = create().phases
    assert (phase.momentum, phase.weight_decay) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("federation", "message"),
    [
        ({}, "federation.local_steps=null: method dp_fpl with epsilon .* give federation.local_steps=1, or"),
        ({"local_steps": 2}, "federation.local_steps=2: method dp_fpl with epsilon"),
        (
            {"local_steps": 1, "lr_schedule": "cosine"},
            "federation.lr_schedule=cosine: .* federation.lr_schedule=constant, or",
        ),
        (
            {"local_steps": 1, "lr_warmup_rounds": 1},
            "federation.lr_warmup_rounds=1: .* federation.lr_warmup_rounds=0, or",
        ),
        ({"local_steps": 1, "server": {"name": "median"}}, "median: method dp_fpl has a server rule of its own"),
    ],
)
def test_federations_in_which_the_noise_is_not_that_of_a_step(tmp_path, federation, message):
    method = {"name": "dp_fpl", "n_ctx": 4, "rank": 2, **NOISE}
    tree = {"data": {"name": "shapes"}, "method": method, "storage": {"root": str(tmp_path)}}
    with pytest.raises(ConfigError, match=message):
        planning.plan(config.parse({**tree, "federation": federation}))
    if "server" not in federation:
        create().server_rule(FederationSettings.model_validate(federation))  # without noise
    assert list(tmp_path.iterdir()) == []


def test_a_rank_above_that_of_the_prompt_is_refused(bind):
    method = create(rank=5)
    with pytest.raises(
        ConfigError, match=r"method dp_fpl: rank: 5 is more than a context of 4 tokens .* method.rank=4 or less"
    ):
        method.init(bind(method), torch.Generator())


def test_client_level_privacy_gives_a_guarantee_for_the_global_prompt(tmp_path):
    wanted = settings(tmp_path, {"name": "dp_fpl", **RUNS["dp_fpl"], "epsilon": None}, rounds=2)
    private = config.PrivacySettings(level="client", noise_multiplier=2.0, clip_norm=0.1, delta=1e-3)
    wanted = wanted.model_copy(update={"privacy": private})
    path = runner.run(wanted, False, callback=RunCallback(), stop=threading.Event())
    first, second = (row.metrics["privacy/epsilon"] for row in RunFolder.open(path).rounds())
    assert 0 < first < second < math.inf
