"""Classes in chunks: the same step, less memory kept, and the figures that are promised."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from fedpgp.bench import classes as bench
from fedpgp.bench.caltech import BASE, NOVEL
from fedpgp.clip.text_tower import tensors_of
from fedpgp.federation.resources import kept_for_backward


def test_chunks_change_neither_loss_nor_gradients(scene):
    whole, *chunked = (bench.step(scene, chunk)() for chunk in (None, 1, 7))
    for other in chunked:
        for left, right in zip(whole, other, strict=True):
            torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_what_is_kept_for_the_backward_pass_hardly_grows_with_classes_in_chunks(scene):
    """50 classes more, ten at a time: their features are kept, not their activations."""

    def kept(names, chunk):
        many = replace(scene, base=names, novel=())
        frozen = replace(many.text, class_chunk=chunk).on(range(len(names)))
        ctx = many.params()["ctx"][0]
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(frozen._tower)}
        return kept_for_backward(lambda: frozen.encode(ctx).sum(), known)

    few, many = BASE[:50], (*BASE, *NOVEL)
    assert kept(many, None) - kept(few, None) > 5 * (kept(many, 10) - kept(few, 10))


def test_figures(scene):
    told = json.loads(bench.measure(1, lambda what: None, scene, chunks=(5, 10)).as_json())
    assert told["bench"] == "classes"
    assert set(told["figures"]) == {f"{what}_{size}" for what in ("megabytes", "seconds") for size in (5, 10, "all")}
    ordered = [told["figures"][f"megabytes_{size}"] for size in (5, 10, "all")]
    assert ordered == sorted(ordered)
