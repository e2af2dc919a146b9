"""Correct answers per client and domain, and confusion matrices, from predicted classes."""

from collections.abc import Sequence

import numpy as np

from fedpgp.data.protocol import EvaluationSet
from fedpgp.federation.messages import Counts

MOST_CLASSES = 1000  # with more there is no confusion matrix, which would take more than 8 MB


def count(
    images: EvaluationSet,
    metric: str,
    clients: np.ndarray,
    answers: np.ndarray,
    members: Sequence[np.ndarray] | None,
    num_domains: int,
    num_classes: int | None,
) -> Counts:
    """Count the correct answers of each client's model, or of the one model of all, as `metric`.

    Args:
        answers: predicted class of each model for each image (models, n).
        members: each client's images; None: all of them.
        num_classes: for the confusion matrix; None: without one.
    """
    right = np.broadcast_to(answers == images.labels, (len(clients), len(images.rows)))
    chosen: Sequence[np.ndarray | slice] = [slice(None)] * len(clients) if members is None else members
    correct = [
        np.bincount(images.domains[own], weights=row[own], minlength=num_domains)
        for row, own in zip(right, chosen, strict=True)
    ]
    total = [np.bincount(images.domains[own], minlength=num_domains) for own in chosen]
    confusion = count_confusion(images.labels, answers, len(clients), members, num_classes) if num_classes else None
    return Counts(
        images.split, metric, clients, np.array(correct, dtype=np.int64), np.array(total, dtype=np.int64), confusion
    )


def count_confusion(
    labels: np.ndarray, answers: np.ndarray, clients: int, members: Sequence[np.ndarray] | None, num_classes: int
) -> np.ndarray | None:
    """Count how often the models of a block's clients predicted each class (column) for each true class (row) (C, C).

    Answers that are not a class are left out: -1 (no answer) and the columns of further prompt sets (see `FedPGP`).
    None for more than `MOST_CLASSES` classes. Arguments as in `count`, labels (n,).
    """
    if num_classes > MOST_CLASSES:
        return None
    classes = (answers >= 0) & (answers < num_classes)
    pairs = np.where(classes, labels * num_classes + answers, num_classes**2)
    if members is None:
        counts = np.bincount(pairs.ravel(), minlength=num_classes**2) * (clients // len(answers))
    else:
        rows = np.broadcast_to(pairs, (clients, len(labels)))
        own = np.concatenate([row[chosen] for row, chosen in zip(rows, members, strict=True)])
        counts = np.bincount(own, minlength=num_classes**2)
    return counts[: num_classes**2].reshape(num_classes, num_classes).astype(np.int64)
