"""The reference and our step agree, and the figures of the bench have their names."""

from __future__ import annotations

import json

import pytest
import torch

from fedpgp.bench import step
from fedpgp.bench.measurement import counted
from fedpgp.bench.workload import BASE, NOVEL


def test_the_reference_and_ours_give_the_same_loss_and_gradients(workload):
    both = step.steps(workload, batch=6)
    ours, reference = both.ours(), both.reference()
    assert [tensor.shape for tensor in ours] == [(), (1, 1, 4, 64), (1, 1, 4, 4), (1, 1, 4, 64)]
    assert all(float(tensor.norm()) > 0 for tensor in reference)
    assert step.difference(ours, reference) < 1e-4
    torch.testing.assert_close(*both.logits(), atol=1e-4, rtol=0)


def test_a_difference_is_seen():
    assert step.difference([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0])]) == pytest.approx(1 / 34**0.5)


def test_work_does_not_include_the_constants_that_the_first_step_makes(workload, monkeypatch):
    monkeypatch.setattr("fedpgp.bench.measurement.SQUARES", (16,))
    both, quiet = step.steps(workload, batch=4), lambda what: None
    (_, first), (_, later) = counted(both.ours), counted(both.ours)
    found = step.compare(workload, both, 4, repeats=1, report=quiet)
    assert found.our_work == later < first
    assert found.peak_fractions[1] == pytest.approx(later / found.ours / found.peak)


def test_figures(workload, monkeypatch):
    monkeypatch.setattr("fedpgp.bench.measurement.SQUARES", (16,))
    outcome = step.measure(1, lambda what: None, workload, repeats=1)
    found = json.loads(outcome.as_json())
    assert found["bench"] == "step"
    assert set(found["figures"]) == {
        "ratio_fp32_b32", "ratio_fp32_b8", "ratio_bf16_b32",
        "ours_peak_fraction", "oracle_peak_fraction", "max_abs_logit_difference",
    }  # fmt: skip
    assert found["figures"]["max_abs_logit_difference"] < 1e-3
    assert [len(row) for row in outcome.rows] == [len(outcome.headings)] * 5


def test_names_of_caltech():
    assert (len(set(BASE)), len(set(NOVEL)), set(BASE) & set(NOVEL)) == (50, 50, set())
