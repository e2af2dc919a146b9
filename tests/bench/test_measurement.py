"""Operations are counted, and a profile accounts for all of the time."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from fedpgp.bench import round as rounds
from fedpgp.bench import step
from fedpgp.bench.measurement import KINDS, OTHER, OUTSIDE, counted, profile


def test_operations_of_a_product_and_of_attention():
    """(3, 4) x (4, 5): 2 * 60. Attention of 6 tokens and width 8, one head: 2 products of 2 * 6 * 6 * 8."""
    assert counted(lambda: torch.ones(3, 4) @ torch.ones(4, 5))[1] == 120
    x = torch.ones(1, 1, 6, 8)
    assert counted(lambda: nn.functional.scaled_dot_product_attention(x, x, x))[1] == 2 * 2 * 6 * 6 * 8


def test_a_profile_separates_products_from_waiting():
    x = torch.ones(1000, 1000)

    def run():
        x @ x
        time.sleep(0.2)

    found = profile("x", run, 2, ())
    assert found.figures[OUTSIDE] * found.figures["milliseconds"] > 190
    assert found.figures["products with weights"] > 10 * found.figures["softmax"] == 0
    assert sum(value for name, value in found.figures.items() if name != "milliseconds") == pytest.approx(1, abs=0.01)


def test_a_step_and_a_round(workload):
    for found in (step.profile(1, workload), rounds.profile(1, workload, tests=(20, 3), batch=16)):
        assert {row[0] for row in found.rows} == {*KINDS, OTHER, OUTSIDE}
        assert found.figures["products with weights"] > 0
    assert "by stage: train" in found.notes[0]
