"""The rows of a run: what is recorded of each round and client. Rows are the truth; all else mirrors them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

CLIENT_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("client", pa.int32()),
        ("split", pa.string()),  # train | val | test
        ("metric", pa.string()),  # a name of `metrics.METRICS`; in train rows `train` (the loss) or a part of the loss
        ("domain", pa.string()),  # null: all domains together
        ("correct", pa.int64()),  # null for train rows
        ("total", pa.int64()),  # images
        ("loss", pa.float64()),  # mean loss of the local steps; null for val and test rows
        ("event", pa.string()),  # what went wrong in training and what was done; null: nothing
    ]
)
"""One row per client, split, metric and domain, for every round in which it was measured. Exact counts, no rates."""


CONFUSION_SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # val | test
        ("metric", pa.string()),  # a name of `evaluation.METRICS`
        ("label", pa.int32()),  # what the image shows: a place in identity.json's `class_names`
        ("answer", pa.int32()),  # what a client's model took it for
        ("count", pa.int64()),  # how often, over all clients
    ]
)
"""What was taken for what after the last round: the pairs that occurred."""


PARTITION_SCHEMA = pa.schema(
    [
        ("client", pa.string()),
        ("split", pa.string()),  # train: after shots; val and test: the images of the client's Local
        ("class", pa.string()),
        ("domain", pa.string()),
        ("images", pa.int64()),  # at least 1
    ]
)
"""Who holds how many images of which class."""


@dataclass(frozen=True)
class RoundRow:
    """One committed round."""

    round: int
    """1, 2, ...; 0 is a model that nothing has trained"""
    metrics: Mapping[str, float]
    """`val/local`, `test/hm`, ...: unweighted means over clients, in percent; `train/loss`
    and its parts, for example `train/ce`. Absent if not measured"""
    participants: int
    """clients that trained"""
    bytes_up: int
    """bytes of shared parameters sent by the participants, as on a real wire"""
    bytes_down: int
    """bytes of shared parameters sent to the participants"""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """wall-clock seconds by stage: train, aggregate, evaluate"""
    timestamp_ms: int = 0
    """milliseconds since the epoch at the commit; the mirror uses it, so that a row sent twice stays one row"""
