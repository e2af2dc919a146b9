"""Counts over all clients: by hand on a few logits, against plain loops on random answers, and one model for all."""

from __future__ import annotations

import numpy as np
import torch

from fedpgp.data.protocol import EvaluationSet
from fedpgp.federation.pooled_counts import BINS, MILLION, Answers, confidences, pool


def images(labels, domains=None):
    labels = np.array(labels)
    domains = np.zeros(len(labels), np.int32) if domains is None else np.array(domains, np.int32)
    return EvaluationSet(split="test", class_set="all", rows=np.arange(len(labels)), labels=labels, domains=domains)


def test_the_confidence_is_the_softmax_of_the_answer_in_millionths():
    logits = torch.tensor(
        [[[0.0, 0.0], [0.0, float(np.log(3))], [float("nan"), 0.0], [float("inf"), 0.0], [0.0, 90.0]]]
    )
    assert confidences(logits, logits.max(-1).values).tolist() == [[500000, 750000, 0, 0, 1000000]]


def test_bins_and_classes_of_one_client_by_hand():
    """Five images: right at 0.95, wrong at 0.95, right at 0.4, no answer, and an answer that is not a class, at 0.4."""
    answers = Answers(np.array([[0, 0, 1, -1, 2]]), np.array([[950000, 950000, 400000, 0, 400000]]))
    found = pool(images([0, 1, 1, 0, 1]), answers, None, 1, 1, (0, 1))
    assert {number: row.tolist() for number, row in enumerate(found.bins[0]) if row.any()} == {
        5: [2, 1, 800000],  # (5/15, 6/15] has 0.4
        14: [2, 1, 1900000],
    }
    assert found.classes.tolist() == [[[2, 2, 1], [3, 1, 1]]]


def test_a_bin_has_its_upper_edge_and_not_its_lower_one():
    edges = np.array([[200000, 200001, 1, 1000000]])  # 3/15
    found = pool(images([0] * 4), Answers(np.zeros((1, 4), int), edges), None, 1, 1, (0,))
    assert found.bins[0, :, 0].nonzero()[0].tolist() == [0, 2, 3, 14]


def counted(labels, domains, answers, members, classes):
    """The definition, an image at a time."""
    bins, by_class = np.zeros((2, BINS, 3), np.int64), np.zeros((2, classes, 3), np.int64)
    for client, own in enumerate(members):
        for image in own:
            domain, label = domains[image], labels[image]
            answer, confidence = (part[client % len(part)][image] for part in (answers.classes, answers.confidence))
            by_class[domain, label] += [1, 0, answer == label]
            if 0 <= answer < classes:
                by_class[domain, answer, 1] += 1
            if answer >= 0:
                number = next(one for one in range(BINS) if confidence * BINS <= (one + 1) * MILLION)
                bins[domain, number] += [1, answer == label, confidence]
    return bins, by_class


def test_random_answers_are_counted_as_by_plain_loops():
    random, clients, count, classes = np.random.default_rng(1), 4, 60, 5
    labels, domains = random.integers(classes, size=count), random.integers(2, size=count)
    members = [random.choice(count, size, replace=False) for size in (0, 7, 20, 60)]
    for models in (1, clients):
        answers = Answers(
            random.integers(-1, classes + 2, size=(models, count)),
            random.integers(1, MILLION + 1, size=(models, count)),
        )
        for own in (members, None):
            found = pool(images(labels, domains), answers, own, clients, 2, tuple(range(classes)))
            expected = counted(labels, domains, answers, own or [range(count)] * clients, classes)
            np.testing.assert_array_equal(found.bins, expected[0])
            np.testing.assert_array_equal(found.classes, expected[1])


def test_blocks_add_up():
    random = np.random.default_rng(2)
    answers = Answers(random.integers(3, size=(4, 9)), random.integers(1, MILLION, size=(4, 9)))
    own = images(random.integers(3, size=9))
    whole = pool(own, answers, None, 4, 1, (0, 1, 2))
    parts = [
        pool(own, Answers(answers.classes[part], answers.confidence[part]), None, 2, 1, (0, 1, 2))
        for part in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_array_equal(whole.bins, sum(part.bins for part in parts))
    np.testing.assert_array_equal(whole.classes, sum(part.classes for part in parts))
