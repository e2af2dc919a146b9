"""Clipping, noise and the clip norm, by hand and against chi-square bounds; whole rounds on one weight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from scipy.stats import chi2

from fedpgp.core.seeding import torch_generator
from fedpgp.federation.accountant import Accountant
from fedpgp.federation.cohorts import sample_clients
from fedpgp.federation.messages import Call
from fedpgp.federation.privacy import CLIP_NORM, Mechanism, clipped
from fedpgp.federation.state import State
from fedpgp.server_rules import create


def mechanism(clients=3, noise=0.0, clip_norm=1.5, adaptive=False, where="server", sampling="fixed", expected=None):
    accountant = Accountant(sampling, clients, clients if expected is None else expected, 0.01)
    return Mechanism(clip_norm, noise, adaptive, where, accountant)


def call(clients, clip_norm=1.5, round=1):
    return Call(round, np.arange(clients), {}, clip_norm=clip_norm)


def within_chi_square(values, variance):
    """Whether the mean square of normal values fits their variance; wrong in 2 of 10,000 cases, and seeded."""
    low, high = chi2.ppf([1e-4, 1 - 1e-4], values.numel())
    return low < float(values.double().square().sum()) / variance < high


def trees(kind, clients, seed):
    """Received and learned shared parameters with updates of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    received = {"a": torch.randn(4, 3, generator=generator), "b": torch.randn(5, generator=generator)}
    scale = {
        "random": torch.ones(clients),
        "tiny to huge": 10.0 ** torch.linspace(-12, 18, clients),
        "aligned": torch.full((clients,), 1e6),
    }[kind]
    learned = {}
    for key, value in received.items():
        shape = (1 if kind == "aligned" else clients, *value.shape)
        change = torch.randn(shape, generator=generator) * scale.view(-1, *[1] * value.dim())
        learned[key] = value + change
    learned["a"][0, 0, 0] = float("nan")
    learned["b"][1, 0] = float("inf")
    return received, learned


@pytest.mark.parametrize("kind", ["random", "tiny to huge", "aligned"])
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 1e4])
def test_no_client_moves_the_sum_by_more_than_the_clip_norm(kind, clip_norm):
    """Also not by its vote, by more than 1/2; clients 0 and 1 are not finite, and excluded."""
    clients, private = 8, mechanism(8)
    for seed in range(5):
        received, learned = trees(kind, clients, seed)
        counts = torch.arange(clients) > 1
        total, votes = private.upload(learned, received, counts, call(clients, clip_norm), seed=1)
        lengths = []
        for client in range(clients):
            others = counts & (torch.arange(clients) != client)
            without, fewer = private.upload(learned, received, others, call(clients, clip_norm), seed=1)
            moved = sum((total[key] - without[key]).square().sum().item() for key in total) ** 0.5
            assert moved <= clip_norm * (1 + 1e-12)
            assert abs(votes - fewer) == (0.5 if client > 1 else 0)
            lengths.append(moved)
        assert lengths[:2] == [0, 0]
        if kind == "aligned":
            assert lengths[2:] == pytest.approx([clip_norm] * 6)


def test_all_keys_are_clipped_together_and_short_updates_not_at_all():
    received = {"a": torch.zeros(1), "b": torch.zeros(2)}
    learned = {"a": torch.tensor([[3.0], [0.25]]), "b": torch.tensor([[0.0, 4.0], [0.0, 0.0]])}
    updates, votes = clipped(learned, received, torch.tensor([True, True]), 2.5)
    assert updates["a"].tolist() == [[1.5], [0.25]]
    assert updates["b"].tolist() == [[0.0, 2.0], [0.0, 0.0]]
    assert votes.tolist() == [-0.5, 0.5]


def test_the_server_adds_noise_of_the_promised_variance():
    """Sums of 10 clients with z = 2 and C = 1.5: a standard deviation of 3 in the sum, of 0.3 in the mean."""
    private, state = mechanism(10, noise=2.0), State(0, {"a": torch.zeros(20_000), "b": torch.zeros(5, 4)}, {})
    mean, after = private.release({}, 0.0, state, torch_generator(1, "noise", 1))
    assert after == {}
    assert within_chi_square(mean["a"], 0.3**2)
    again, _ = private.release({}, 0.0, state, torch_generator(1, "noise", 1))
    other, _ = private.release({}, 0.0, state, torch_generator(1, "noise", 2))
    assert torch.equal(mean["a"], again["a"])
    assert within_chi_square(mean["a"] - other["a"], 2 * 0.3**2)  # independent of each other


@pytest.mark.parametrize("counting", [0, 3, 10])
def test_the_parts_of_the_clients_add_up_to_the_noise_of_the_server(counting):
    """Also if some or all of them are excluded."""
    private, zeros = mechanism(10, noise=2.0, where="client"), torch.zeros(10, 5_000)
    total, votes = private.upload({"a": zeros}, {"a": zeros[0]}, torch.arange(10) < counting, call(10), seed=1)
    assert votes == counting / 2  # without noise: the clip norm does not adapt
    assert within_chi_square(total["a"], 3.0**2)
    state = State(0, {"a": torch.zeros(5_000)}, {})
    mean, _ = private.release(total, 0.0, state, torch_generator(1, "noise", 1))
    assert torch.equal(mean["a"], (total["a"] / 10).float())  # and nothing more is added


def test_the_part_of_a_client_depends_on_seed_round_and_client_alone():
    private, zeros = mechanism(4, noise=1.0, where="client"), torch.zeros(4, 2_000)

    def sent(clients, seed=1, round=1):
        some = Call(round, np.array(clients), {}, clip_norm=1.5)
        count = torch.ones(len(clients), dtype=torch.bool)
        return private.upload({"a": zeros[clients]}, {"a": zeros[0]}, count, some, seed)[0]["a"]

    one = sent([2])
    assert torch.equal(one, sent([2]))
    assert torch.allclose(sent([1, 2]), sent([1]) + one, atol=1e-12)
    for other in (sent([1]), sent([2], seed=2), sent([2], round=2)):
        assert within_chi_square(one - other, 2 * 1.5**2 / 4)


@pytest.mark.parametrize(("noise", "expected"), [(0.5, 100), (1.0, 10), (20.0, 100)])
def test_sum_and_votes_share_the_noise_multiplier(noise, expected):
    """z^-2 = z_sum^-2 + (2 sigma_b)^-2: a vote is at most 1/2."""
    private = mechanism(1000, noise, adaptive=True, sampling="poisson", expected=expected)
    assert private.sum_noise**-2 + (2 * private.vote_noise) ** -2 == pytest.approx(noise**-2)
    assert private.vote_noise == max(expected / 20, noise)
    without = mechanism(1000, noise, sampling="poisson", expected=expected)
    assert (without.sum_noise, without.vote_noise) == (noise, 0)
    nothing = mechanism(adaptive=True)
    assert (nothing.sum_noise, nothing.vote_noise) == (0, 0)


@pytest.mark.parametrize("where", ["server", "client"])
def test_the_votes_have_the_promised_noise(where):
    """log C' / C = -0.2 (votes + N(0, sigma_b^2)) / m, with sigma_b = 2 for m = 40 and z = 1."""
    private = mechanism(40, 1.0, adaptive=True, where=where)
    state = State(0, {"a": torch.zeros(1)}, {}, privacy=private.initial())
    zeros, nobody = {"a": torch.zeros(40, 1)}, torch.zeros(40, dtype=torch.bool)
    found = []
    for round in range(1, 101):
        total, votes = private.upload(zeros, state.shared, nobody, call(40, round=round), seed=1)
        _, after = private.release(total, votes, state, torch_generator(1, "noise", round))
        found.append(-5 * 40 * math.log(after[CLIP_NORM].item() / 1.5))
    assert within_chi_square(torch.tensor(found), 2.0**2)


def test_the_clip_norm_follows_the_median():
    """Updates of lengths 1, ..., 9. One step from C = 6: 6 votes against 3, so C = 6 exp(-0.2 (6 - 3) / 2 / 9)."""
    learned, everyone = {"a": torch.arange(1.0, 10.0).unsqueeze(1)}, torch.ones(9, dtype=torch.bool)
    private = mechanism(9, clip_norm=6.0, adaptive=True)
    state = State(0, {"a": torch.zeros(1)}, {}, privacy=private.initial())
    norms = []
    for _ in range(100):
        clip_norm = private.clip_norm_of(state)
        total, votes = private.upload(learned, state.shared, everyone, call(9, clip_norm), seed=1)
        _, after = private.release(total, votes, state, torch_generator(1, "noise", 1))
        state = replace(state, privacy=after)
        norms.append(after[CLIP_NORM].item())
    assert norms[0] == pytest.approx(6 * math.exp(-0.2 * 1.5 / 9))
    assert all(abs(norm - 5) < 0.1 for norm in norms[50:])


def private_server(server, private, rule="fedavg", rule_settings=(), **changes):
    federation = server("a", **changes)
    job = replace(federation.job, privacy=private, rule=create(rule, dict(rule_settings)))
    federation.backend.load(job)
    federation.job = job
    return federation


@pytest.mark.parametrize("block_size", [1, 2, 10])
@pytest.mark.parametrize("rule", ["fedavg", "mean"])
def test_noise_0_is_clipping_alone_and_clients_count_alike(server, block_size, rule):
    """Updates 1, 2.5, -2 clipped to 1.5: (1 + 1.5 - 1.5) / 3, and personal parts stay as trained."""
    federation = private_server(server, mechanism(), rule, rounds=1, block_size=block_size)
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == pytest.approx(1 / 3)
    assert result.state.personal["b"].flatten().tolist() == [1.0, 2.5, -2.0]
    assert result.row.metrics["privacy/clip_norm"] == 1.5
    assert "privacy/epsilon" not in result.row.metrics
    assert result.row.bytes_up == result.row.bytes_down == 3 * 4


@pytest.mark.parametrize("rule", ["mean", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_without_noise_and_limit_it_is_the_unweighted_rule(server, rule):
    """The images of the three clients differ in number, so all others than `mean` are fed equal weights here."""
    private = private_server(server, mechanism(clip_norm=1e6), rule)
    plain = server("a")
    job = replace(plain.job, rule=create(rule, {}))
    job.rule.weighting = "equal"
    plain.backend.load(job)
    plain.job = job
    for mine, theirs in zip(private.run(private.initial_state()), plain.run(plain.initial_state()), strict=True):
        assert mine.state.shared["a"].item() == pytest.approx(theirs.state.shared["a"].item(), abs=1e-6)


def test_an_excluded_client_sends_nothing_and_is_divided_by(server):
    """(1 + 0 - 1.5) / 3."""
    images = [[1.0, 3.0], [1e30], [-4.0, -4.0, -4.0]]
    federation = private_server(server, mechanism(), images=images, rounds=1, policy="exclude")
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == pytest.approx(-0.5 / 3)
    assert result.state.personal["b"].flatten().tolist() == [1.0, 0.0, -2.0]


@pytest.mark.parametrize("where", ["server", "client"])
def test_blocks_change_nothing_but_rounding(server, where):
    private = mechanism(noise=1.0, adaptive=True, where=where)
    runs = []
    for block_size in (10, 2, 1):
        federation = private_server(server, private, block_size=block_size, rounds=3)
        runs.append([result.state for result in federation.run(federation.initial_state())])
    for states in zip(*runs, strict=True):
        for tree in ("shared", "privacy"):
            values = [next(iter(getattr(state, tree).values())).item() for state in states]
            assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_every_row_says_what_is_spent(server):
    private = mechanism(noise=2.0, adaptive=True)
    federation = private_server(server, private, rounds=3)
    results = list(federation.run(federation.initial_state()))
    assert [result.row.metrics["privacy/epsilon"] for result in results] == [
        private.accountant.epsilon(2.0, number) for number in (1, 2, 3)
    ]
    norms = [result.row.metrics["privacy/clip_norm"] for result in results]
    assert norms == [1.5, *(result.state.privacy[CLIP_NORM].item() for result in results[:2])]
    assert {result.row.metrics["privacy/delta"] for result in results} == {0.01}


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_round_without_participants(server, noise):
    """It is a round: its row, its noise, and what it spends; without privacy nothing changes."""
    changes = {"rounds": 2, "participation": 1e-6, "sampling": "poisson"}
    private = mechanism(noise=noise, sampling="poisson", expected=3e-6)
    for federation, moves in ((private_server(server, private, **changes), noise > 0), (server("a", **changes), False)):
        results = list(federation.run(federation.initial_state()))
        assert [result.row.participants for result in results] == [0, 0]
        assert all((result.state.shared["a"].item() != 0) == moves for result in results)
        assert results[0].state.personal["b"].flatten().tolist() == [0, 0, 0]
        assert all("test/local" in result.row.metrics and "train/loss" not in result.row.metrics for result in results)
        assert not results[0].clients.filter(pc.field("split") == "train").num_rows


class Spy:
    """A rule from outside the package; keeps what it was given."""

    name, paper, uploads, weighting = "spy", "", "sum", "images"

    def __init__(self):
        self.received = []

    def init(self, shared, num_clients):
        return {}

    def broadcast(self, server, shared, clients):
        return shared, {}

    def aggregate(self, server, shared, received):
        self.received.append(received)
        return server, received.mean


def test_a_rule_gets_the_noisy_mean_and_nothing_else_of_the_clients(server):
    federation, rule = private_server(server, mechanism(noise=1.0), rounds=1), Spy()
    federation.job = replace(federation.job, rule=rule)
    (result,) = federation.run(federation.initial_state())
    (received,) = rule.received
    assert torch.equal(received.mean["a"], result.state.shared["a"])
    assert (received.clients.tolist(), received.weights.tolist(), received.stack) == ([], [], {})


def test_the_sampling_is_what_the_accountant_assumes(server):
    """Poisson: numbers of participants with mean q K and variance q (1 - q) K, each client alone; fixed: always m."""
    settings = server("a", participation=0.3, sampling="poisson").job.federation
    drawn = [sample_clients(1, round, 40, settings) for round in range(1, 401)]
    assert all(sample.tolist() == sorted(set(sample.tolist())) for sample in drawn)
    sizes = torch.tensor([float(len(sample)) for sample in drawn])
    assert within_chi_square(sizes - 12, 0.3 * 0.7 * 40)
    assert abs(sizes.mean() - 12) < 4 * (0.3 * 0.7 * 40 / 400) ** 0.5
    per_client = np.bincount(np.concatenate(drawn), minlength=40)
    assert within_chi_square(torch.from_numpy(per_client - 120.0), 0.3 * 0.7 * 400)
    both = sum(0 in sample and 1 in sample for sample in (set(one.tolist()) for one in drawn))
    assert abs(both - 36) < 4 * (0.09 * 0.91 * 400) ** 0.5  # independent of each other
    fixed = settings.model_copy(update={"sampling": "fixed"})
    assert {len(sample_clients(1, round, 40, fixed)) for round in range(1, 50)} == {12}
    whole = settings.model_copy(update={"participation": 1.0})
    assert sample_clients(1, 1, 40, whole).tolist() == list(range(40))
