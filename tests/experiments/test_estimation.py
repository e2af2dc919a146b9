"""The bytes of a sweep on disk and on the wire, worked out by hand for each server rule that keeps something."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from fedpgp.experiments import estimation
from fedpgp.experiments.sweeps import sampling
from fedpgp.experiments.sweeps.sweep_settings import Sweep

ONE = 4 * 16 * 512
"""Bytes of a context of 16 tokens of width 512, all that PromptFL shares and keeps."""


def estimate(rule, method="promptfl", federation=MappingProxyType({}), **searched):
    base = {
        "method": {"name": method},
        "data": {"name": "shapes"},
        "backbone": {"name": "tiny", "weights": "random"},
        "partition": {"clients": 5, "unseen_clients": 0.2},
        "protocol": {"shots": 2},
        "federation": {"rounds": 3, "participation": 0.5, "server": {"name": rule}, **federation},
    }
    sweep = Sweep.model_validate({"base": base, **searched})
    found = estimation.of_sweep(sweep, sampling.draw(sweep))
    return found.disk_bytes, found.wire_bytes


@pytest.mark.parametrize(
    ("rule", "kept", "sent"),
    [
        ("fedavgm", 1, 2),  # the momentum
        ("fedadam", 2, 2),  # m and v
        ("scaffold", 1 + 5, 4),  # c, and c_i of each of 5 clients; c comes, and a change of c_i goes, beside x
        ("median", 0, 2),
    ],
)
def test_what_a_rule_keeps_and_sends(rule, kept, sent):
    """Beside FedAvg's one set of shared parameters in each of 3 checkpoints; 2 of the 4 that train, in 3 rounds."""
    disk, wire = estimate(rule)
    assert disk - estimate("fedavg")[0] == 3 * kept * ONE
    assert wire == sent * ONE * 2 * 3


def test_a_search_sends_what_its_trials_will_send():
    """It is checked with two trials, and will have ten."""
    searched = {"space": {"federation.lr": {"choice": [0.1, 0.2]}}, "tune": {"search": "optuna", "num_samples": 10}}
    assert estimate("fedavg", **searched)[1] == 10 * estimate("fedavg")[1]


def test_nothing_shared_is_nothing_sent_or_kept_by_the_server():
    disk, wire = estimate("scaffold", "coop")
    assert wire == 0
    assert disk == estimate("fedavg", "coop")[0]


def test_clients_that_are_not_tested_have_no_rows():
    """4 clients train and one does not: of each kind at most 4, 3 or 2 leave 5, 4 or 3 clients with rows."""
    five, four, three = (estimate("fedavg", federation={"eval_clients": most})[0] for most in (4, 3, 2))
    assert five == estimate("fedavg")[0]
    assert five > four
    assert five - four == pytest.approx(four - three, abs=1)  # bytes are whole
