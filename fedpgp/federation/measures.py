"""What the mean accuracy does not say: calibration, F1, balanced accuracy, worst clients and single domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.federation.pooled_counts import BINS, MILLION

if TYPE_CHECKING:
    from fedpgp.data.federated import FederatedData
    from fedpgp.federation.messages import Counts

POOLED = ("ece", "f1", "balanced")
"""Measures of all images of all clients together, in percent."""
SPREAD = ("worst", "p10")
"""Measures over the accuracies of single clients, in percent."""
MEASURES = (*POOLED, *SPREAD)
"""`test/base_ece` is the measure `ece` of `test/base`."""
LOWEST_PERCENT = 10

POOLED_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("split", pa.string()),  # a name of `metrics.TESTED`
        ("metric", pa.string()),  # a name of `metrics.METRICS`
        ("domain", pa.string()),  # null if the data have one
        ("bin", pa.int32()),  # of confidence, from 0; null in rows of classes
        ("label", pa.int32()),  # an index into `class_names` of identity.json; null in rows of bins
        ("images", pa.int64()),  # in the bin, or of the class, over all clients
        ("correct", pa.int64()),
        ("predicted", pa.int64()),  # images predicted as the class; null in rows of bins
        ("confidence", pa.int64()),  # sum in millionths; null in rows of classes
    ]
)
"""Exact counts over all clients, one row per split, metric, domain, and bin of confidence or class that has any. Rows
of domains add up. An image that several clients are tested on counts once for each."""


def pooled_table(number: int, counts: Sequence[Counts], data: FederatedData) -> pa.Table:
    """The rows of a round in `POOLED_SCHEMA`, in an order that does not depend on the blocks."""
    domains = len(data.domains)
    sums: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for part in counts:
        empty = np.zeros((domains, BINS, 3), np.int64), np.zeros((domains, len(data.class_names), 3), np.int64)
        bins, classes = sums.setdefault((part.split, part.metric), empty)
        bins += part.pooled.bins
        classes[:, list(part.pooled.labels)] += part.pooled.classes
    names = pa.array(data.domains if domains > 1 else [None], pa.string())
    tables = [POOLED_SCHEMA.empty_table()]
    for (split, metric), (bins, classes) in sorted(sums.items()):
        for slot, values, columns in (
            ("bin", bins, ("images", "correct", "confidence")),
            ("label", classes, ("images", "predicted", "correct")),
        ):
            domain, index = np.nonzero(values.any(-1))
            found = dict(zip(columns, values[domain, index].T, strict=True))
            found |= {slot: index.astype(np.int32), "domain": names.take(pa.array(domain))}
            tables.append(_table(len(index), round=number, split=split, metric=metric, **found))
    return pa.concat_tables(tables)


def _table(count: int, **columns: object) -> pa.Table:
    """Rows of `POOLED_SCHEMA`; single values are repeated, missing columns are null."""
    arrays = []
    for name, kind in zip(POOLED_SCHEMA.names, POOLED_SCHEMA.types, strict=True):
        column = columns.get(name)
        several = isinstance(column, np.ndarray | pa.Array)
        arrays.append(pa.array(column, kind) if several else pa.repeat(pa.scalar(column, kind), count))
    return pa.table(arrays, schema=POOLED_SCHEMA)


def of_counts(pooled: pa.Table, by: Sequence[str] = ("split", "metric")) -> dict[tuple[str, ...], dict[str, float]]:
    """`POOLED` by the values of the columns `by`, in percent, from rows in `POOLED_SCHEMA`.

    * `ece`: expected calibration error (Naeini et al., AAAI 2015; Guo et al., ICML 2017, eq. 3) in `BINS` bins of equal
      width over the softmax of the predicted class: sum over bins of (their share of the images) * |accuracy - mean
      confidence|. Images without an answer are left out. Confidences are rounded to millionths, in the bins, too: up to
      0.00005 percent.
    * `f1`: macro F1, the mean of 2 correct / (images + predicted) over the classes that have images or are predicted.
    * `balanced`: balanced accuracy, the mean of correct / images over the classes that have images.

    Clients are pooled: one that is tested on more images counts more, other than in the accuracies. As in
    scikit-learn's `f1_score(average="macro")` and `balanced_accuracy_score`. What has no images is absent.
    """
    by = list(by)
    bins = _summed(pooled, by, "bin", ("images", "correct", "confidence"))
    gaps = pc.abs(pc.subtract(pc.multiply(bins["correct"], MILLION), bins["confidence"]))
    gaps = bins.append_column("gap", gaps).group_by(by, use_threads=False)
    shares = gaps.aggregate([("gap", "sum"), ("images", "sum")])
    classes = _summed(pooled, by, "label", ("images", "correct", "predicted"))
    correct = pc.multiply(pc.cast(classes["correct"], pa.float64()), 100.0)
    f1 = pc.divide(pc.multiply(correct, 2.0), pc.add(classes["images"], classes["predicted"]))
    images = classes["images"]
    recall = pc.divide(correct, pc.if_else(pc.greater(images, 0), images, pa.scalar(None, pa.int64())))
    rates = classes.append_column("f1", f1).append_column("recall", recall).group_by(by, use_threads=False)
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for row in shares.to_pylist():
        own = found.setdefault(tuple(row[one] for one in by), {})
        own["ece"] = 100 * row["gap_sum"] / (MILLION * row["images_sum"])
    for row in rates.aggregate([("f1", "mean"), ("recall", "mean")]).to_pylist():
        own = found.setdefault(tuple(row[one] for one in by), {})
        own |= {"f1": row["f1_mean"], "balanced": row["recall_mean"]}
    return found


def _summed(pooled: pa.Table, by: Sequence[str], slot: str, columns: Sequence[str]) -> pa.Table:
    """The counts of bins or classes, summed over the domains unless these are in `by`."""
    rows = pooled.filter(pc.field(slot).is_valid())
    summed = rows.group_by([*by, slot], use_threads=False).aggregate([(column, "sum") for column in columns])
    return summed.rename_columns([*by, slot, *columns])


def of_clients(accuracies: pa.Table) -> dict[tuple[str, ...], dict[str, float]]:
    """`SPREAD` by split and metric, from a table with `split`, `metric` and `percent`, a row for each client.

    `worst`: the lowest accuracy. `p10`: the 10th percentile, between two clients by linear interpolation (numpy's
    default).
    """
    names = pc.binary_join_element_wise(accuracies["split"], accuracies["metric"], "/").combine_chunks()
    encoded = names.dictionary_encode()
    values, place = accuracies["percent"].to_numpy(), encoded.indices.to_numpy()
    found = {}
    for number, name in enumerate(encoded.dictionary.to_pylist()):
        own = values[place == number]
        low = float(np.percentile(own, LOWEST_PERCENT))
        found[tuple(name.split("/"))] = {"worst": float(own.min()), "p10": low}
    return found


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """The metric, the measure and the domain of a name without its split.

    `local_global_ece` is (`local_global`, `ece`, None), `local.sketch` is (`local`, None, `sketch`).
    """
    base, _, domain = name.partition(".")
    metric, _, measure = base.rpartition("_")
    if metric and measure in MEASURES:
        return metric, measure, domain or None
    return base, None, domain or None


def smaller_is_better(name: str) -> bool:
    """Whether a metric (`test/base_ece`, `train/loss`) is the better the smaller it is."""
    return name == "train/loss" or split_name(name)[1] == "ece"
