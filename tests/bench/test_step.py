"""The reference and our step agree; a block gives the same numbers as one client at a time, with fewer launches.

Classes in chunks give the same step with less memory; the figures of the benches have their names.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fedpgp.bench import step
from fedpgp.bench.measurement import counted
from fedpgp.bench.workload import BASE, NOVEL, one_batch
from fedpgp.clip.towers import tensors_of
from fedpgp.federation.worker import kept_for_backward


def test_the_reference_and_ours_give_the_same_loss_and_gradients(workload):
    both = step.Steps(workload, batch=6)
    ours, reference = both.ours(), both.reference()
    assert [tensor.shape for tensor in ours] == [(), (1, 1, 4, 64), (1, 1, 4, 4), (1, 1, 4, 64)]
    assert all(float(tensor.norm()) > 0 for tensor in reference)
    assert step.difference(ours, reference) < 1e-4
    torch.testing.assert_close(*both.logits(), atol=1e-4, rtol=0)


def test_a_difference_is_seen():
    assert step.difference([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0])]) == pytest.approx(1 / 34**0.5)


def test_work_does_not_include_the_constants_that_the_first_step_makes(workload, monkeypatch):
    monkeypatch.setattr("fedpgp.bench.measurement.SQUARES", (16,))
    both, quiet = step.Steps(workload, batch=4), lambda what: None
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


def test_a_block_gives_the_gradients_of_single_clients(workload):
    """The first client of a block of two equals the client of a block of one."""
    frozen, method, params = workload.on_base(), workload.method, workload.params(2)
    features, labels = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1)), torch.arange(10).view(2, 5)

    def gradients(chosen):
        tree = {key: value[chosen].detach().requires_grad_() for key, value in params.items()}
        loss, _ = method.loss(tree, {}, frozen, one_batch(features[chosen], labels[chosen]))
        return torch.autograd.grad(loss.sum(), list(tree.values()))

    together, *alone = gradients(slice(None)), gradients(slice(0, 1)), gradients(slice(1, 2))
    for both, one, other in zip(together, *alone, strict=True):
        torch.testing.assert_close(both, torch.cat([one, other]), atol=1e-5, rtol=1e-4)


def test_launches_of_one_product_and_its_gradient():
    """x @ w, its sum; backward: a one, its expansion is a view, one product."""
    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(3, 4)
    product = lambda: torch.autograd.grad((x @ w).sum(), x)  # noqa: E731
    assert step.launches(product) == 4


def test_figures_of_clients(workload):
    outcome = step.clients(1, lambda what: None, workload)
    found = json.loads(outcome.as_json())
    assert (found["bench"], set(found["figures"])) == ("clients", {"ratio_block_to_single", "kernels_per_client_step"})
    single, *_, whole = outcome.rows
    assert (single[0], whole[0]) == ("1", "10")
    assert int(whole[3]) < int(single[3]) / 5


def test_chunks_change_neither_loss_nor_gradients(workload):
    whole, *chunked = (workload.step(step.BATCH, class_chunk=chunk)() for chunk in (None, 1, 7))
    for other in chunked:
        for left, right in zip(whole, other, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_memory_for_the_backward_pass_hardly_grows_with_classes_in_chunks(workload):
    """For 50 more classes, ten at a time, features are kept but not activations."""

    def kept(names, chunk):
        many = replace(workload, base=names, novel=())
        frozen = replace(many.text, class_chunk=chunk).on(range(len(names)))
        ctx = many.params()["ctx"][0]
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(frozen._tower)}
        return kept_for_backward(lambda: frozen.encode(ctx).sum(), known)

    few, many = BASE[:50], (*BASE, *NOVEL)
    assert kept(many, None) - kept(few, None) > 5 * (kept(many, 10) - kept(few, 10))


def test_figures_of_classes(workload):
    found = json.loads(step.classes(1, lambda what: None, workload, chunks=(5, 10)).as_json())
    assert found["bench"] == "classes"
    assert set(found["figures"]) == {f"{what}_{size}" for what in ("megabytes", "seconds") for size in (5, 10, "all")}
    ordered = [found["figures"][f"megabytes_{size}"] for size in (5, 10, "all")]
    assert ordered == sorted(ordered)
