"""Memory of a training step, counted by hand."""

from __future__ import annotations

import torch

from fedpgp.federation.worker import kept_for_backward


def test_each_storage_counts_once_and_frozen_ones_do_not():
    """x * x keeps x (400 bytes) once; exp keeps its result (400); the product with frozen w keeps only w."""
    x, w = torch.ones(100, requires_grad=True), torch.ones(100)
    frozen = {w.untyped_storage().data_ptr()}
    assert kept_for_backward(lambda: (x * x).sum(), frozen) == 400
    assert kept_for_backward(lambda: (x * x).exp().sum(), frozen) == 800
    assert kept_for_backward(lambda: (x * w).sum(), frozen) == 0
    assert kept_for_backward(lambda: (x * w).sum(), set()) == 400
