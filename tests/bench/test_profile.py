"""Where the time goes: every part is told, and the parts are the whole."""

from __future__ import annotations

import time

import pytest
import torch

from fedpgp.bench import round as rounds
from fedpgp.bench import step
from fedpgp.bench.profile import KINDS, OTHER, OUTSIDE, where_time_goes


def test_products_and_waiting_are_told_apart():
    x = torch.ones(1000, 1000)

    def run():
        x @ x
        time.sleep(0.2)

    told = where_time_goes("x", run, 2, ())
    assert told.figures[OUTSIDE] * told.figures["milliseconds"] > 190
    assert told.figures["products with weights"] > 10 * told.figures["softmax"] == 0
    assert sum(value for name, value in told.figures.items() if name != "milliseconds") == pytest.approx(1, abs=0.01)


def test_a_step_and_a_round(scene):
    for told in (step.profile(1, scene), rounds.profile(1, scene, tests=(20, 3), batch=16)):
        assert {row[0] for row in told.rows} == {*KINDS, OTHER, OUTSIDE}
        assert told.figures["products with weights"] > 0
    assert "by stage: train" in told.notes[0]
