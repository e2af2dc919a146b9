"""Classes in chunks give the same step with less memory; the figures have their names."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from fedpgp.bench import classes as bench
from fedpgp.bench.workload import BASE, NOVEL
from fedpgp.clip.towers import tensors_of
from fedpgp.federation.resources import kept_for_backward


def test_chunks_change_neither_loss_nor_gradients(workload):
    whole, *chunked = (workload.step(bench.BATCH, class_chunk=chunk)() for chunk in (None, 1, 7))
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


def test_figures(workload):
    found = json.loads(bench.measure(1, lambda what: None, workload, chunks=(5, 10)).as_json())
    assert found["bench"] == "classes"
    assert set(found["figures"]) == {f"{what}_{size}" for what in ("megabytes", "seconds") for size in (5, 10, "all")}
    ordered = [found["figures"][f"megabytes_{size}"] for size in (5, 10, "all")]
    assert ordered == sorted(ordered)
