"""Exact counts over all clients of a block: images by confidence of the answer, and by true and predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fedpgp.data.federated import EvaluationSet

BINS = 15
"""Bins of equal width over the confidence."""
MILLION = 1_000_000
"""A confidence is counted in whole millionths, so that sums are exact and do not depend on blocks, order or backend."""


@dataclass(frozen=True)
class Answers:
    """What each model answered for each image (models, n); one model may stand for all clients."""

    classes: np.ndarray
    """predicted class; -1: no answer, since the logits are not finite"""
    confidence: np.ndarray
    """probability of the predicted class, in millionths; 0 without an answer"""


@dataclass(frozen=True)
class PooledCounts:
    """Counts over the images of all clients of a block by domain (D); blocks add up."""

    labels: tuple[int, ...]
    """the labels of the C classes among all classes of the data"""
    bins: np.ndarray
    """(D, `BINS`, 3) images, correct ones, sum of the confidence in millionths"""
    classes: np.ndarray
    """(D, C, 3) images of a class, images predicted as it, and those that are both"""


def confidences(logits: Tensor, best: Tensor) -> Tensor:
    """Softmax of the predicted class in millionths (K, B) int32, from logits (K, B, C) and their maximum (K, B)."""
    largest = best.float()
    probability = (logits.float() - largest.unsqueeze(-1)).exp_().sum(-1).reciprocal_()
    return probability.nan_to_num_(0.0).mul_(MILLION).round_().int()


def pool(
    images: EvaluationSet,
    answers: Answers,
    members: Sequence[np.ndarray] | None,
    clients: int,
    num_domains: int,
    labels: tuple[int, ...],
) -> PooledCounts:
    """Count the answers of a block's models.

    Bin i holds the confidences in (i / `BINS`, (i + 1) / `BINS`], rounded to millionths. An image without an answer is
    in no bin. Like one whose answer is not a class (see `FedPGP`), it counts for its true class and for no predicted
    one.
    Sums are exact below 2^53, which is a confidence of 1 for 9 billion answers.

    Args:
        members: each client's images; None: all of them.
        clients: their number in the block.
        labels: those of the classes among all classes of the data.
    """
    num_classes = len(labels)
    models, count = answers.classes.shape
    times: int | np.ndarray = 1
    if members is not None and models == clients:
        place = np.repeat(np.arange(models), [len(own) for own in members]) * count + np.concatenate(members)
    else:  # one model of all clients, or all images
        place = np.arange(models * count)
        times = clients // models if members is None else np.bincount(np.concatenate(members), minlength=count)
    image, given, confidence = place % count, answers.classes.ravel()[place], answers.confidence.ravel()[place]
    domain, label = images.domains[image].astype(np.int64), images.labels[image]
    right = given == label

    def summed(slot: np.ndarray, size: int, values: np.ndarray | int = 1) -> np.ndarray:
        """Sums by domain and slot (D, size), in which slot `size` is left out."""
        weights = np.broadcast_to(np.multiply(times, values), slot.shape)
        sums = np.bincount(domain * (size + 1) + slot, weights, num_domains * (size + 1))
        return sums.reshape(num_domains, size + 1)[:, :size].astype(np.int64)

    slot = np.where(given < 0, BINS, np.maximum(BINS * confidence.astype(np.int64) - 1, 0) // MILLION)
    bins = [summed(slot, BINS), summed(slot, BINS, right), summed(slot, BINS, confidence)]
    predicted = np.where((given >= 0) & (given < num_classes), given, num_classes)
    classes = [summed(slot, num_classes, values) for slot, values in ((label, 1), (predicted, 1), (label, right))]
    return PooledCounts(labels, np.stack(bins, -1), np.stack(classes, -1))
