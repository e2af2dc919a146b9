"""The plain oracle and our step agree, in float64 to rounding; the bench's figures have the names that are promised."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fedpgp.bench import step
from fedpgp.bench.caltech import BASE, NOVEL
from fedpgp.bench.timing import counted


def test_the_plain_way_and_ours_give_the_same_loss_and_gradients(scene):
    both = step.sides(scene, batch=6)
    ours, plain = both.ours(), both.plain()
    assert [tensor.shape for tensor in ours] == [(), (1, 1, 4, 64), (1, 1, 4, 4), (1, 1, 4, 64)]
    assert all(float(tensor.norm()) > 0 for tensor in plain)
    assert step.difference(ours, plain) < 1e-4
    torch.testing.assert_close(*both.logits(), atol=1e-4, rtol=0)


def test_a_difference_is_seen():
    assert step.difference([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0])]) == pytest.approx(1 / 34**0.5)


def test_work_is_what_a_step_executes_without_the_constants_that_the_first_one_makes(scene, monkeypatch):
    monkeypatch.setattr("fedpgp.bench.timing.SQUARES", (16,))
    both, quiet = step.sides(scene, batch=4), lambda what: None
    (_, first), (_, later) = counted(both.ours), counted(both.ours)
    raced = step.race(scene, both, 4, repeats=1, progress=quiet)
    assert raced.our_work == later < first
    assert raced.of_peak[1] == pytest.approx(later / raced.ours / raced.peak)


def test_the_report_has_the_promised_figures(scene, monkeypatch):
    monkeypatch.setattr("fedpgp.bench.timing.SQUARES", (16,))
    outcome = step.measure(1, lambda what: None, scene, repeats=1)
    told = json.loads(outcome.as_json())
    assert told["bench"] == "step"
    assert set(told["figures"]) == {
        "ratio_fp32_b32", "ratio_fp32_b8", "ratio_bf16_b32",
        "ours_peak_fraction", "oracle_peak_fraction", "max_abs_logit_difference",
    }  # fmt: skip
    assert told["figures"]["max_abs_logit_difference"] < 1e-3
    assert [len(row) for row in outcome.rows] == [len(outcome.headings)] * 5


def test_operations_of_a_product_and_of_attention():
    """(3, 4) x (4, 5): 2 * 60. Attention of 6 tokens and width 8, one head: 2 products of 2 * 6 * 6 * 8."""
    assert counted(lambda: torch.ones(3, 4) @ torch.ones(4, 5))[1] == 120
    x = torch.ones(1, 1, 6, 8)
    assert counted(lambda: nn.functional.scaled_dot_product_attention(x, x, x))[1] == 2 * 2 * 6 * 6 * 8


def test_names_of_caltech():
    assert (len(set(BASE)), len(set(NOVEL)), set(BASE) & set(NOVEL)) == (50, 50, set())
