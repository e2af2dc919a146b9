"""Parts of a worker: memory of a step, and confusion matrices, counted by hand."""

from __future__ import annotations

import numpy as np
import torch

from fedpgp.federation.worker import MOST_CLASSES, count_confusion, kept_for_backward


def test_each_storage_counts_once_and_frozen_ones_do_not():
    """x * x keeps x (400 bytes) once; exp keeps its result (400); the product with frozen w keeps only w."""
    x, w = torch.ones(100, requires_grad=True), torch.ones(100)
    frozen = {w.untyped_storage().data_ptr()}
    assert kept_for_backward(lambda: (x * x).sum(), frozen) == 400
    assert kept_for_backward(lambda: (x * x).exp().sum(), frozen) == 800
    assert kept_for_backward(lambda: (x * w).sum(), frozen) == 0
    assert kept_for_backward(lambda: (x * w).sum(), set()) == 400


def test_one_model_counts_for_every_client_and_too_many_classes_are_not_counted():
    labels, answers = np.array([0, 1, 1]), np.array([[0, 1, 0]])
    assert count_confusion(labels, answers, 3, None, 2).tolist() == [[3, 0], [3, 3]]
    members = [np.array([0]), np.array([2]), np.array([1, 2])]
    assert count_confusion(labels, answers, 3, members, 2).tolist() == [[1, 0], [2, 1]]
    assert count_confusion(labels, answers, 3, None, MOST_CLASSES + 1) is None


def test_answers_that_are_not_a_class_are_not_counted():
    """No answer (-1), and columns 2 and 3 of a second set, which must not be counted in another row."""
    labels, answers = np.array([0, 0, 1, 1]), np.array([[0, 2, 3, 1], [-1, 1, -1, 0]])
    assert count_confusion(labels, answers, 2, None, 2).tolist() == [[1, 1], [1, 1]]
    assert count_confusion(labels, answers, 2, [np.array([1, 2]), np.array([0, 3])], 2).tolist() == [[0, 0], [1, 0]]
