"""Confusion matrices: integer counts over all clients, independent of blocks and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from fedpgp.data.protocol import FederatedData
from fedpgp.federation.records import CONFUSION_SCHEMA

if TYPE_CHECKING:
    from fedpgp.federation.messages import Counts

MOST_CLASSES = 1000
"""With more classes nothing is counted: a matrix would take more than 8 MB."""


def count_confusion(
    labels: np.ndarray, answers: np.ndarray, clients: int, members: Sequence[np.ndarray] | None, num_classes: int
) -> np.ndarray | None:
    """Count how often the models of a block's clients predicted each class (column) for each true class (row) (C, C).

    Args:
        labels: of the images (n,).
        answers: of each client's model, or of the one model of all clients (models, n). Answers that are not a class
            are left out: -1 (no answer) and the columns of further prompt sets (see `FedPGP`).
        members: each client's images; None: all of them.

    Returns:
        None for more than `MOST_CLASSES` classes.
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


class Confusion:
    """Sums the confusion matrices of blocks."""

    def __init__(self, data: FederatedData) -> None:
        self._data = data
        self._sums: dict[tuple[str, str], np.ndarray] = {}

    def take(self, counts: Counts) -> Counts:
        """Add the matrix of a block, and return its counts without it."""
        if counts.confusion is not None:
            key = (counts.split, counts.metric)
            self._sums[key] = self._sums.get(key, 0) + counts.confusion
        return replace(counts, confusion=None)

    def table(self) -> pa.Table:
        """The nonzero entries with global labels, in `records.CONFUSION_SCHEMA`."""
        parts = [CONFUSION_SCHEMA.empty_table()]
        for (split, metric), matrix in sorted(self._sums.items()):
            classes = np.array(self._data.class_sets[self._class_set(metric)], np.int32)
            label, answer = matrix.nonzero()
            heads = (pa.repeat(pa.scalar(head, pa.string()), len(label)) for head in (split, metric))
            columns = [*heads, classes[label], classes[answer], matrix[label, answer]]
            parts.append(pa.table(columns, schema=CONFUSION_SCHEMA))
        return pa.concat_tables(parts)

    def _class_set(self, metric: str) -> str:
        """The class set of a metric."""
        return metric if metric in self._data.class_sets else self._data.train_set
