"""Confusion matrices, counted by hand."""

from __future__ import annotations

import numpy as np

from fedpgp.federation.evaluation import MOST_CLASSES, count_confusion


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
