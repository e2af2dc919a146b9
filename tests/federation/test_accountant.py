"""What rounds spend: the closed form, the library's own examples, published numbers, and the way back to the noise."""

from __future__ import annotations

import math

import pytest
from scipy.stats import norm

from fedpgp.federation.accountant import Accountant


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.parametrize(("z", "rounds", "delta"), [(1.0, 1, 0.1), (2.0, 10, 1e-2), (5.0, 200, 1e-6)])
def test_with_all_clients_it_is_the_gaussian_mechanism(sampling, z, rounds, delta):
    """delta = F(s / 2 - e / s) - exp(e) F(-s / 2 - e / s) with s = rounds^(1/2) / z (Balle and Wang, 2018)."""
    found = Accountant(sampling, 50, 50, delta)
    e, s = found.epsilon(z, rounds), rounds**0.5 / z
    assert norm.cdf(s / 2 - e / s) - math.exp(e) * norm.cdf(-s / 2 - e / s) == pytest.approx(delta, rel=1e-3)
    assert found.neighbours == "one client added or removed"


def test_examples_of_the_library():
    """Of the tests of its accountants: both deltas belong to epsilon 1."""
    assert Accountant("poisson", 10, 10, 0.126936).epsilon(3**0.5, 3) == pytest.approx(1, abs=1e-3)
    assert Accountant("poisson", 10, 2.0, 0.15594).epsilon(0.5, 3) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("z", "epochs", "published"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)])
def test_published_numbers(z, epochs, published):
    """The MNIST tutorial of TensorFlow Privacy: batches of 256 of 60,000, delta 1e-5.

    It bounds epsilon by Renyi divergences, which give up 20 to 30%; the library by them must come between.
    """
    import dp_accounting as dp

    steps = epochs * 60000 // 256
    found = Accountant("poisson", 60000, 256.0, 1e-5).epsilon(z, steps)
    event = dp.PoissonSampledDpEvent(256 / 60000, dp.GaussianDpEvent(z))
    renyi = dp.rdp.RdpAccountant().compose(event, steps).get_epsilon(1e-5)
    assert 0.7 * published < found < renyi < published


def test_a_fixed_number_of_clients_is_accounted_by_replacement():
    """The sum changes by up to 2 C: the library's event has half the noise per sensitivity."""
    import dp_accounting as dp

    found = Accountant("fixed", 1000, 50, 1e-4)
    theirs = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    theirs.compose(dp.SampledWithoutReplacementDpEvent(1000, 50, dp.GaussianDpEvent(1.5)), 20)
    assert found.neighbours == "one client replaced"
    assert 1 <= found.epsilon(3.0, 20) / theirs.get_epsilon(1e-4) < 1.02
    assert found.epsilon(3.0, 20) > 1.5 * Accountant("poisson", 1000, 50.0, 1e-4).epsilon(3.0, 20)
    # 9 of 10 without the bound by sampling: all clients, each replaced.
    assert Accountant("fixed", 10, 9, 0.01).epsilon(2.0, 5) == Accountant("fixed", 10, 10, 0.01).epsilon(1.0, 5)


@pytest.mark.parametrize("found", [Accountant("fixed", 20, 5, 0.01), Accountant("poisson", 20, 5.0, 0.01)])
def test_more_rounds_spend_more_and_more_noise_less(found):
    assert found.epsilon(1.0, 0) == 0
    assert found.epsilon(0.0, 1) == math.inf
    assert found.epsilon(1.0, 1) < found.epsilon(1.0, 2) < found.epsilon(0.9, 2)


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.parametrize("epsilon", [0.5, 8.0, 300.0])
def test_the_least_noise_is_the_least(sampling, epsilon):
    found = Accountant(sampling, 20, 10, 0.01)
    z = found.least_noise(epsilon, 30)
    step = 0.001 if z <= 1 else 0.01 if z <= 10 else 0.1
    assert z == float(f"{z:.3g}")
    assert found.epsilon(z, 30) <= epsilon < found.epsilon(z - step, 30)


def test_most_rounds_of_a_budget():
    found = Accountant("poisson", 100, 10.0, 1e-3)
    most = found.most_rounds(1.0, 3.0, 100)
    assert found.epsilon(1.0, most) <= 3.0 < found.epsilon(1.0, most + 1)
    assert found.most_rounds(1.0, 3.0, most) == most
    assert found.most_rounds(1.0, 0.01, 100) == 0
