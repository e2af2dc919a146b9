"""The rows of a run: schemas of what is recorded of each round and client, and the tables of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from fedpgp.data.protocol import FederatedData
    from fedpgp.federation.messages import Counts, TrainResult

CLIENT_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("client", pa.int32()),
        ("split", pa.string()),  # train | val | test
        ("metric", pa.string()),  # a name of `metrics.METRICS`; in train rows `train` (the loss) or a part of the loss
        ("domain", pa.string()),  # null: all domains together
        ("correct", pa.int64()),  # null in train rows
        ("total", pa.int64()),  # images
        ("loss", pa.float64()),  # mean over the local steps; null in val and test rows
        ("event", pa.string()),  # what went wrong in training and what was done; null: nothing
    ]
)
"""One row per client, split, metric and domain, for every round in which it was measured. Exact counts, no rates."""

CONFUSION_SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # val | test
        ("metric", pa.string()),  # a name of `metrics.METRICS`
        ("label", pa.int32()),  # true class: an index into `class_names` of identity.json
        ("answer", pa.int32()),  # predicted class
        ("count", pa.int64()),  # how often, over all clients
    ]
)
"""The confusion matrix after the last round, without its zeros."""

PARTITION_SCHEMA = pa.schema(
    [
        ("client", pa.string()),
        ("split", pa.string()),  # train: after shots; val and test: the images of the client's Local
        ("class", pa.string()),
        ("domain", pa.string()),
        ("images", pa.int64()),  # at least 1
    ]
)
"""How many images of each class and domain a client has."""

_Column = np.ndarray | tuple[str | None, ...] | str | int | None


@dataclass(frozen=True)
class RoundRow:
    """One committed round."""

    round: int  # 1, 2, ...; 0: an untrained model
    metrics: Mapping[str, float]
    """`val/local`, `test/hm`, ...: unweighted means over clients, in percent; `train/loss` and its parts, for example
    `train/ce`. Absent if not measured"""
    participants: int  # clients that trained
    bytes_up: int  # bytes of shared parameters that the participants send
    bytes_down: int  # bytes of shared parameters sent to the participants
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall clock, by stage: train, aggregate, evaluate
    timestamp_ms: int = 0  # of the commit, since 1970; makes a row that is sent to MLflow twice one row


def train_tables(number: int, results: Sequence[TrainResult]) -> list[pa.Table]:
    """A row per client for the loss, with what went wrong, and one for each named part of the loss."""
    tables = []
    for result in results:
        for name, loss in {"train": result.loss, **result.parts}.items():
            events = result.events if name == "train" else None
            head = (number, result.clients, "train", name)
            tables.append(_table(*head, total=result.num_examples, loss=loss, event=events))
    return tables


def count_tables(number: int, counts: Counts, domains: Sequence[str]) -> list[pa.Table]:
    """Rows over all domains, then per domain if there are several."""
    correct, total = counts.correct, counts.total
    head = (number, counts.clients, counts.split, counts.metric)
    tables = [_table(*head, correct=correct.sum(1), total=total.sum(1))]
    if len(domains) > 1:
        for index, name in enumerate(domains):
            tables.append(_table(*head, domain=name, correct=correct[:, index], total=total[:, index]))
    return tables


def confusion_table(matrices: Mapping[tuple[str, str], np.ndarray], data: FederatedData) -> pa.Table:
    """The nonzero entries of matrices (C, C) by split and metric, with global labels, in `CONFUSION_SCHEMA`."""
    parts = [CONFUSION_SCHEMA.empty_table()]
    for (split, metric), matrix in sorted(matrices.items()):
        classes = np.array(data.class_sets[metric if metric in data.class_sets else data.train_set], np.int32)
        label, answer = matrix.nonzero()
        heads = (pa.repeat(pa.scalar(head, pa.string()), len(label)) for head in (split, metric))
        columns = [*heads, classes[label], classes[answer], matrix[label, answer]]
        parts.append(pa.table(columns, schema=CONFUSION_SCHEMA))
    return pa.concat_tables(parts)


def _table(number: int, clients: np.ndarray, split: str, metric: str, **columns: _Column) -> pa.Table:
    """Rows of `CLIENT_SCHEMA`: arrays and tuples are columns, everything else is repeated; missing columns are null."""
    columns |= {"round": number, "client": clients, "split": split, "metric": metric}
    arrays = []
    for name, kind in zip(CLIENT_SCHEMA.names, CLIENT_SCHEMA.types, strict=True):
        column = columns.get(name)
        repeat = not isinstance(column, np.ndarray | tuple)
        arrays.append(pa.repeat(pa.scalar(column, kind), len(clients)) if repeat else pa.array(column, kind))
    return pa.table(arrays, schema=CLIENT_SCHEMA)
