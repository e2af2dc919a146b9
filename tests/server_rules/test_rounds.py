"""Hand-worked rounds of each server rule on the one-weight problem.

Three clients with means 2, 5 and -4 (2, 1 and 3 images): with a = b = 0 and learning rate 0.5 they send 1, 2.5 and -2.
Five clients with one image each send 1, 2, 5, 4.5 and 50.
"""

from __future__ import annotations

import logging

import pytest
from one_weight import IMAGES, one_weight

from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server

FIVE = [[2.0], [4.0], [10.0], [9.0], [100.0]]


@pytest.fixture
def rounds(tmp_path):
    """The values of a after each round; a and b are shared, and equal."""

    def run(name, images=IMAGES, federation=None, **settings):
        changes = {"rounds": 1, **(federation or {})}
        job = one_weight(tmp_path, "ab", images, rule={"name": name, **settings}, **changes)
        backend = SerialBackend(threads=1)
        backend.load(job)
        server = Server(job, backend)
        found = [result.state.shared["a"].item() for result in server.run(server.initial_state())]
        backend.close()
        return found

    return run


def test_fedavg_weights_by_images(rounds):
    """(2 * 1 + 2.5 - 3 * 2) / 6, and half of it."""
    assert rounds("fedavg") == [-0.25]
    assert rounds("fedavg", lr=0.5) == [-0.125]


def test_mean_weights_clients_alike(rounds):
    """(1 + 2.5 - 2) / 3."""
    assert rounds("mean") == [0.5]


def test_fedavgm_keeps_its_velocity(rounds):
    """v = -0.25. From a = b = -0.25 all clients arrive where they did, so D = 0, and v = -0.125."""
    assert rounds("fedavgm", federation={"rounds": 2}, momentum=0.5) == [-0.25, -0.375]
    assert rounds("fedavgm", federation={"rounds": 2}, momentum=0) == rounds("fedavg", federation={"rounds": 2})


@pytest.mark.parametrize(
    ("name", "beta_2", "v"),
    [
        ("fedadam", {"beta_2": 0.75}, 0.75 + 0.25 * 0.0625),
        ("fedyogi", {"beta_2": 0.75}, 1 - 0.25 * 0.0625),
        ("fedadagrad", {}, 1 + 0.0625),
    ],
)
def test_adaptive_rules_divide_by_the_root_of_the_second_moment(rounds, name, beta_2, v):
    """D = -0.25, m = 0.5 * -0.25, v starts at tau^2 = 1."""
    (found,) = rounds(name, lr=0.1, tau=1, beta_1=0.5, **beta_2)
    assert found == pytest.approx(0.1 * -0.125 / (v**0.5 + 1), rel=1e-6)


def test_fedadam_with_a_large_tau_is_fedavg(rounds):
    plain, adaptive = (
        rounds(name, federation={"rounds": 3, "participation": 0.7}, **settings)
        for name, settings in (("fedavg", {}), ("fedadam", {"beta_1": 0, "beta_2": 0, "lr": 1e7, "tau": 1e7}))
    )
    assert adaptive == pytest.approx(plain, rel=1e-5)


def test_median_of_three_and_of_four(rounds):
    """Of 1, 2.5, -2; of 1, 2, 4.5, 5 the mean of 2 and 4.5."""
    assert rounds("median") == [1.0]
    assert rounds("median", lr=0.5) == [0.5]
    assert rounds("median", FIVE[:4]) == [3.25]


def test_trimmed_mean_leaves_out_both_ends(rounds):
    """2, 4.5 and 5 are left of five; with 0.19 nothing is cut."""
    assert rounds("trimmed_mean", FIVE, trim=0.2) == [pytest.approx(11.5 / 3)]
    assert rounds("trimmed_mean", FIVE, trim=0.4) == rounds("median", FIVE) == [4.5]
    assert rounds("trimmed_mean", FIVE, trim=0.19) == rounds("trimmed_mean", FIVE, trim=0) == rounds("mean", FIVE)


def test_krum_takes_the_client_with_the_nearest_neighbours(rounds):
    """Squares to the two nearest: 1 + 12.25, 1 + 6.25, 0.25 + 9, 0.25 + 6.25, 2025 + 2070.25; twice, for a and b."""
    assert rounds("krum", FIVE, f=1) == [4.5]


def test_multi_krum_takes_the_mean_of_some(rounds):
    """4.5 and 2; all but 50."""
    assert rounds("multi_krum", FIVE, f=1, m=2) == [3.25]
    assert rounds("multi_krum", FIVE, f=1) == [3.125]
    assert rounds("multi_krum", FIVE, f=1, m=1) == rounds("krum", FIVE, f=1)


def test_krum_among_equal_clients_and_one_attacker_takes_what_they_sent(rounds):
    assert rounds("krum", [[6.0]] * 4 + [[-1000.0]], f=1) == [3.0]


def test_krum_skips_a_round_with_too_few_updates(rounds, caplog):
    """The last client's loss is infinite, and 4 are fewer than 2 f + 3."""
    with caplog.at_level(logging.WARNING):
        assert rounds("krum", [*FIVE[:4], [1e30]], {"policy": "exclude"}, f=1) == [0.0]
    assert caplog.messages == [
        "round 1: 4 updates arrived and the server rule needs 5; the shared parameters are unchanged"
    ]


def test_geometric_median_weights_by_images_and_distance(rounds):
    """One step from the mean -0.25: distances 1.25, 2.75 and 1.75 times the root of 2."""
    shares = [2 / 1.25, 1 / 2.75, 3 / 1.75]
    expected = (shares[0] * 1 + shares[1] * 2.5 - shares[2] * 2) / sum(shares)
    assert rounds("geometric_median", iterations=1) == [pytest.approx(expected, rel=1e-6)]
    assert rounds("geometric_median", iterations=0) == rounds("fedavg") == [-0.25]
    assert rounds("geometric_median", nu=1e6) == [-0.25]


def test_geometric_median_comes_to_the_one_with_most_of_the_images(rounds):
    """In one dimension it is the weighted median: -2 has four of seven images."""
    assert rounds("geometric_median", [*IMAGES[:2], [-4.0] * 4], iterations=200) == [pytest.approx(-2, abs=1e-4)]


def test_scaffold_corrects_the_gradients_of_the_second_round(rounds):
    """c_i = -2, -5, 4 and c = -1 after round 1. From a = b = 0.5 the gradients -1, -4, 5 become 0, so nothing moves."""
    assert rounds("scaffold", federation={"rounds": 3}) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.5, "lr_schedule": "cosine", "lr_schedule_per": "step", "lr_warmup_rounds": 1},
    ],
)
def test_scaffold_with_one_client_is_sgd(rounds, changes):
    """The same bits as FedAvg with one client, over several steps, epochs and rounds."""
    federation = {"rounds": 4, "local_epochs": 2, "batch_size": 1, "lr": 0.1, **changes}
    plain = rounds("fedavg", [[1.0, 3.0, -2.0]], federation)
    assert rounds("scaffold", [[1.0, 3.0, -2.0]], federation) == plain
    assert len(set(plain)) == 4


def test_control_variates_are_kept_by_clients_that_do_not_take_part(tmp_path):
    """c_i of those that trained; c grows by M / K of the mean change: of two of three clients."""
    job = one_weight(tmp_path, "a", rule={"name": "scaffold"}, rounds=1, participation=0.7)
    backend = SerialBackend(threads=1)
    backend.load(job)
    server = Server(job, backend)
    (result,) = server.run(server.initial_state())
    backend.close()
    trained = set(result.changed.tolist())
    assert len(trained) == 2
    control = [-2.0 if client == 0 else -5.0 if client == 1 else 4.0 for client in range(3)]
    kept = [control[client] if client in trained else 0.0 for client in range(3)]
    assert result.state.kept["control.a"].flatten().tolist() == kept
    assert result.state.server["control.a"].item() == pytest.approx(sum(kept) / 3)
