"""Schedules of the learning rate: hand-worked factors, and whole rounds on one weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedpgp.config import FederationSettings
from fedpgp.federation.client import travel
from fedpgp.federation.learning_rates import factors
from fedpgp.methods.base import Phase

ONE = np.array([1])


def by_round(rounds=4, **changes):
    settings = FederationSettings(rounds=rounds, **changes)
    return [factors(settings, number, ONE) for number in range(1, rounds + 1)]


def by_step(steps, rounds=2, **changes):
    settings = FederationSettings(rounds=rounds, lr_schedule_per="step", **changes)
    return [factors(settings, number, np.array(steps)) for number in range(1, rounds + 1)]


def test_constant_is_exactly_one():
    assert by_round() == [1.0] * 4
    assert all(isinstance(factor, float) for factor in by_round())


def test_cosine_by_round():
    """(1 + cos(pi t / 4)) / 2 at t = 0, 1, 2, 3."""
    half = 2**0.5 / 2
    assert by_round(lr_schedule="cosine") == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_steps_by_round():
    found = by_round(rounds=7, lr_schedule="step", lr_step_rounds=3, lr_step_factor=0.1)
    assert found == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_warm_up_by_round_ends_at_the_whole_rate():
    assert by_round(lr_warmup_rounds=4) == pytest.approx([0.25, 0.5, 0.75, 1])
    assert by_round(lr_warmup_rounds=2) == pytest.approx([0.5, 1, 1, 1])


def test_after_the_warm_up_the_cosine_begins():
    """2 rounds of warm-up, then (1 + cos(pi t / 2)) / 2 at t = 0, 1; the whole run can be warm-up."""
    assert by_round(lr_warmup_rounds=2, lr_schedule="cosine") == pytest.approx([0.5, 1, 1, 0.5])
    assert by_round(lr_warmup_rounds=4, lr_schedule="cosine") == pytest.approx([0.25, 0.5, 0.75, 1])


def test_warm_up_multiplies_the_steps():
    found = by_round(lr_warmup_rounds=2, lr_schedule="step", lr_step_rounds=1, lr_step_factor=0.5)
    assert found == pytest.approx([0.5, 0.5, 0.25, 0.125])


def test_cosine_by_local_step_goes_on_across_rounds():
    """Two rounds of 2 steps are at 0, 1/4, 2/4, 3/4 of the way; a client with 1 step is at 0 and 1/2."""
    half = 2**0.5 / 2
    first, second = by_step([2, 1], lr_schedule="cosine")
    assert first[:, 0] == pytest.approx([1, (1 + half) / 2])
    assert second[:, 0] == pytest.approx([0.5, (1 - half) / 2])
    assert (first[0, 1], second[0, 1]) == pytest.approx((1, 0.5))


def test_warm_up_by_local_step():
    """One round of warm-up: 1/4, ..., 4/4 for 4 steps, 1/2 and 1 for 2 steps; then 1."""
    first, second = by_step([4, 2], lr_warmup_rounds=1)
    assert first[:, 0] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert first[:2, 1] == pytest.approx([0.5, 1])
    assert second == pytest.approx(np.ones((4, 2)))


def test_steps_by_local_step():
    first, second = by_step([2], lr_schedule="step", lr_step_rounds=1, lr_step_factor=0.5, lr_warmup_rounds=1)
    assert first[:, 0].tolist() == [0.5, 1]
    assert second[:, 0].tolist() == [0.5, 0.5]


def test_a_client_without_a_step_has_no_factor():
    assert by_step([0], lr_schedule="cosine")[0].shape == (0, 1)


def test_how_far_a_constant_gradient_goes():
    """Momentum 0.5 and factors 1, 1, 0.5: velocities 1, 1.5, 1.75."""
    steps = np.array([3, 1])
    schedule = np.array([[1.0, 0.5], [1.0, 9.0], [0.5, 9.0]])
    assert travel(steps, 1.0, 0.0).tolist() == [3, 1]
    assert travel(steps, 1.0, 0.5).tolist() == [4.25, 1]
    assert travel(steps, schedule, 0.5).tolist() == [1 + 1.5 + 0.875, 0.5]


def run(federation, state=None):
    return list(federation.run(state or federation.initial_state()))


def learned(federation):
    """The personal parameters after each round; a step writes into the state that it is given."""
    return [
        {key: value.flatten().tolist() for key, value in result.state.personal.items()}
        for result in federation.run(federation.initial_state())
    ]


def test_the_rate_of_a_round_scales_its_step(server):
    """Warm-up over 2 rounds at lr 0.5: a step of 0.25 goes half of the way, and one of 0.5 all of the rest."""
    first, second = learned(server("", lr_warmup_rounds=2))
    assert first["a"] == [0.5, 1.25, -1.0]
    assert second["a"] == [1.0, 2.5, -2.0]


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_the_rate_of_each_step_of_each_client(server, chunk_size):
    """Batches of one image and 2 rounds of cosine; x does 2 steps, y 1, z 3, of which the first is at the whole rate.

    z (three times -4): a = b = -2 after a step of 0.5, which is at the minimum, so the others add nothing. y: 2.5.
    """
    made = server("", batch_size=1, lr_schedule="cosine", lr_schedule_per="step", chunk_size=chunk_size)
    found = [one["a"] for one in learned(made)]
    assert found[0][1:] == pytest.approx([2.5, -2.0])
    images = [[1.0, 3.0], [3.0, 1.0]]
    rates = 0.5 * factors(made.job.federation, 1, np.array([2]))[:, 0]
    ends = []
    for order in images:
        a = 0.0
        for image, rate in zip(order, rates, strict=True):
            a -= rate * (2 * a - image)
        ends.append(a)
    assert any(found[0][0] == pytest.approx(end) for end in ends)


def test_every_phase_and_its_decay_are_multiplied(server):
    """Phase 1 learns b at its own rate 0.25, decay 0.5 a round; phase 2 learns a at 0.5. Cosine: 1, then 0.5.

    y (image 5), round 1: b = 1.25, then a = 0.5 * 3.75 = 1.875. Round 2: a + b = 3.125, rates 0.25 * 0.5 * 0.5 and
    0.5 * 0.5: b += 1.875 / 16 = 0.1171875, a += (5 - 3.2421875) / 4 = 0.439453125.
    """
    made = server("", lr_schedule="cosine")
    made.job.method.phases = (Phase(frozenset({"b"}), lr={"b": 0.25}, decay=0.5), Phase(frozenset({"a"})))
    first, second = ({key: values[1] for key, values in one.items()} for one in learned(made))
    assert first == {"b": 1.25, "a": 1.875}
    assert second == pytest.approx({"b": 1.3671875, "a": 2.314453125})


@pytest.mark.parametrize("changes", [{"lr_schedule": "cosine"}, {"lr_schedule_per": "step", "lr_warmup_rounds": 3}])
def test_a_schedule_is_a_function_of_the_round(server, changes):
    """Nothing is carried along: from the state after round 2, a new server does rounds 3 and 4 to the same bits."""
    whole = run(server("ab", rounds=4, batch_size=1, **changes))
    rest = run(server("ab", rounds=4, batch_size=1, **changes), whole[1].state)
    assert [result.state.shared["a"].item() for result in rest] == [
        result.state.shared["a"].item() for result in whole[2:]
    ]


def test_fine_tuning_has_the_whole_rate(server):
    """The last of 2 rounds is at half of the rate; one epoch of fine-tuning still reaches the means 2, 5, -4."""
    changes = {"lr_schedule": "step", "lr_step_rounds": 1, "lr_step_factor": 0.5, "finetune_epochs": 1}
    (_, last) = run(server("ab", **changes))
    rows = [row for row in last.clients.to_pylist() if (row["split"], row["metric"]) == ("test", "local")]
    assert [row["correct"] for row in rows] == [1, 0, 3]  # as in test_finetuning_before_evaluation...


def test_a_schedule_that_is_constant_changes_no_bit(server):
    plain, same = run(server("a")), run(server("a", lr_schedule="step", lr_step_factor=1.0))
    assert torch.equal(plain[-1].state.shared["a"], same[-1].state.shared["a"])
