"""The rows of a run, and the accuracies computed from them: Local, Base, Novel and their harmonic mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, harmonic_mean
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.federation.measures import MEASURES, POOLED_SCHEMA, of_clients, of_counts, split_name

if TYPE_CHECKING:
    from fedpgp.federation.messages import Counts, TrainResult

METRICS = (
    "local", "base", "novel", "hm", "all", "held_out", "local_own", "local_global", "base_global", "novel_global",
    "all_global", "held_out_global", "local_before_aggregation", "local_adapted", "base_adapted", "novel_adapted",
    "hm_adapted", "all_adapted", "held_out_adapted",
)  # fmt: skip
"""The metrics of a split, in the order of the tables; `hm` is computed from local, base and novel, and `hm_adapted`
from these after the adaptation of a new client."""
COMPUTED = ("hm", "hm_adapted")
"""Metrics that are computed from other ones, and have no measures and no domains."""
NEW_CLIENT = "new_client"
SEEN = "local_global"
"""The metric of the clients that train, from which the participation gap subtracts that of the new ones."""
TESTED = ("val", "test", NEW_CLIENT)
"""The splits that have accuracies: validation and test images of the clients that train and do not attack, and test
images of those that never train."""
PRIVACY = ("privacy/epsilon", "privacy/delta", "privacy/clip_norm")
"""What a round says of differential privacy; without a guarantee the clip norm alone."""
DIGESTS = ("config_digest", "manifest_digest", "partition_digest", "weights_fingerprint")
"""Digests that two runs of the same experiment share."""

CLIENT_SCHEMA = pa.schema(
    [
        ("round", pa.int32()),
        ("client", pa.int32()),
        ("split", pa.string()),  # train, or one of `TESTED`
        ("metric", pa.string()),  # a name of `METRICS`; in train rows `train` (the loss) or a part of the loss
        ("domain", pa.string()),  # null: all domains together
        ("correct", pa.int64()),  # null in train rows
        ("total", pa.int64()),  # images
        ("loss", pa.float64()),  # mean over the local steps; null in rows of other splits than train
        ("event", pa.string()),  # attack, straggler, what went wrong and what was done, lost; null: nothing
    ]
)
"""One row per client, split, metric and domain, for every round in which it was measured. Exact counts, no rates."""

CONFUSION_SCHEMA = pa.schema(
    [
        ("split", pa.string()),  # val | test
        ("metric", pa.string()),  # a name of `METRICS`
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
    """`val/local`, `test/hm`, `new_client/local`, ...: unweighted means over clients, in percent; their `MEASURES`,
    such as `test/base_ece`; if the data have several domains, the means of each, such as `test/local.sketch`;
    `train/loss` and its parts, for example `train/ce`, over all participants; `privacy/epsilon` spent so far,
    `privacy/delta`, `privacy/clip_norm`. Absent if not measured"""
    participants: int  # clients that trained
    bytes_up: int  # bytes of shared parameters that the participants send
    bytes_down: int  # bytes of shared parameters sent to the participants
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall clock, by stage: train, aggregate, evaluate
    timestamp_ms: int = 0  # of the commit, since 1970; makes a row that is sent to MLflow twice one row
    system: Mapping[str, float] = field(default_factory=dict)  # what driver and workers used, see `usage.of_round`


def train_tables(number: int, results: Sequence[TrainResult]) -> list[pa.Table]:
    """A row per client for the loss, with what went wrong, and one for each named part of the loss."""
    tables = []
    for result in results:
        for name, loss in {"train": result.loss, **result.parts}.items():
            events = result.events if name == "train" else None
            columns: dict[str, _Column] = {"total": result.num_examples, "loss": loss, "event": events}
            tables.append(_table(number, result.clients, "train", name, **columns))
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


def joined_parts(clients: pa.Table) -> pa.Table:
    """Rows in `CLIENT_SCHEMA` in which the counts of a client on several data sets are one row over all domains.

    Domains without images for a metric have no row.
    """
    of_images, keys = clients.filter(pc.field("split") != "train"), ["round", "client", "split", "metric", "domain"]
    of_images = of_images.filter(pc.field("domain").is_null() | (pc.field("total") > 0))
    summed = of_images.group_by(keys, use_threads=False).aggregate([("correct", "sum"), ("total", "sum")])
    rows = summed.rename_columns([*keys, "correct", "total"])
    for name in ("loss", "event"):
        rows = rows.append_column(CLIENT_SCHEMA.field(name), pa.nulls(len(rows), CLIENT_SCHEMA.field(name).type))
    return pa.concat_tables([clients.filter(pc.field("split") == "train"), rows.cast(CLIENT_SCHEMA)])


def confusion_table(matrices: Mapping[tuple[str, str, tuple[int, ...]], np.ndarray]) -> pa.Table:
    """The nonzero entries of matrices (C, C) by split, metric and labels of the classes, in `CONFUSION_SCHEMA`."""
    parts = [CONFUSION_SCHEMA.empty_table()]
    for (split, metric, labels), matrix in sorted(matrices.items()):
        classes = np.array(labels, np.int32)
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


def round_metrics(
    clients: pa.Table, pooled: pa.Table | None = None, part_of: Mapping[str, str] = MappingProxyType({})
) -> dict[str, float]:
    """The metrics of a round from its rows in `CLIENT_SCHEMA`: `val/local`, `test/hm`, `train/loss`, ...

    Accuracies are in percent: unweighted means over the clients that have images for a metric. `hm` is the harmonic
    mean of the three means, as in the paper, not the mean over clients. Metrics that were not measured are absent.

    Args:
        pooled: its rows in `POOLED_SCHEMA`; None: without the measures of these.
        part_of: of a union the part that a domain belongs to: accuracies are then the means of those of the parts.
    """
    by_split: dict[str, dict[str, float]] = {}
    accuracies = _accuracies(clients)
    means = _by_part(clients, part_of) if part_of else accuracies
    means = means.group_by(["split", "metric"], use_threads=False).aggregate([("percent", "mean")])
    for row in means.sort_by("split").to_pylist():
        by_split.setdefault(row["split"], {})[row["metric"]] = row["percent_mean"]
    complete = {split: _with_hm(values) for split, values in by_split.items()}
    metrics = {
        f"{split}/{name}": values[name] for split, values in complete.items() for name in METRICS if name in values
    }
    metrics |= _measures(accuracies, POOLED_SCHEMA.empty_table() if pooled is None else pooled) | _by_domain(
        clients, part_of
    )
    return metrics | _losses(clients.filter((pc.field("split") == "train") & pc.is_finite(pc.field("loss"))))


def _measures(accuracies: pa.Table, pooled: pa.Table) -> dict[str, float]:
    """`test/base_ece`, `test/local_worst`, ..., in the order of `METRICS` and `MEASURES`."""
    parts = of_counts(pooled), of_clients(accuracies)
    found = {(*key, measure): value for part in parts for key, own in part.items() for measure, value in own.items()}
    order = sorted(found, key=lambda one: (one[0], METRICS.index(one[1]), MEASURES.index(one[2])))
    return {f"{split}/{metric}_{measure}": found[split, metric, measure] for split, metric, measure in order}


def _by_part(clients: pa.Table, part_of: Mapping[str, str]) -> pa.Table:
    """The mean accuracy of the clients that have images of a part, by split, metric and part, in `percent`."""
    rows = clients.filter((pc.field("split") != "train") & pc.field("domain").is_valid())
    rows = rows.append_column("part", pa.array([part_of[domain] for domain in rows["domain"].to_pylist()], pa.string()))
    keys = ["client", "split", "metric", "part"]
    summed = rows.group_by(keys, use_threads=False).aggregate([("correct", "sum"), ("total", "sum")])
    summed = _with_percent(summed.rename_columns([*keys, "correct", "total"]))
    means = summed.group_by(keys[1:], use_threads=False).aggregate([("percent", "mean")])
    return means.rename_columns([*keys[1:], "percent"])


def _by_domain(clients: pa.Table, part_of: Mapping[str, str]) -> dict[str, float]:
    """`test/local.sketch`, ...: means over the clients that have images of a domain, for metrics with several.

    Of a union those of the parts.
    """
    keys = ("split", "metric", "part" if part_of else "domain")
    found = _by_part(clients, part_of) if part_of else _accuracies(clients, by_domain=True)
    found = found.group_by(keys, use_threads=False)
    means = {
        tuple(row[key] for key in keys): row["percent_mean"]
        for row in found.aggregate([("percent", "mean")]).to_pylist()
    }
    counts = Counter(key[:2] for key in means)
    order = sorted(means, key=lambda one: (one[0], METRICS.index(one[1]), one[2]))
    return {
        f"{split}/{metric}.{domain}": means[split, metric, domain]
        for split, metric, domain in order
        if counts[split, metric] > 1
    }


def _losses(train: pa.Table) -> dict[str, float]:
    """`train/loss` and its parts: means over the clients whose loss is finite."""
    whole = train.filter(pc.field("metric") == "train")
    if not whole.num_rows:
        return {}
    parts = train.filter((pc.field("metric") != "train") & pc.field("client").isin(whole["client"]))
    means = parts.group_by("metric", use_threads=False).aggregate([("loss", "mean")]).sort_by("metric")
    by_part = {f"train/{row['metric']}": row["loss_mean"] for row in means.to_pylist()}
    return {"train/loss": pc.mean(whole["loss"]).as_py(), **by_part}


def per_client_table(clients: pa.Table, round: int) -> pa.Table:
    """One row per client and split: client, split, and each measured metric in percent; null: no images for it."""
    by_client: dict[tuple[int, str], dict[str, float]] = {}
    for row in _accuracies(clients.filter(pc.field("round") == round)).to_pylist():
        by_client.setdefault((row["client"], row["split"]), {})[row["metric"]] = row["percent"]
    rows = [
        {"client": client, "split": split, **_with_hm(values)} for (client, split), values in sorted(by_client.items())
    ]
    measured = [name for name in METRICS if any(name in row for row in rows)]
    schema = pa.schema([("client", pa.int32()), ("split", pa.string()), *((name, pa.float64()) for name in measured)])
    return pa.Table.from_pylist(rows, schema)


def selections(rounds: Sequence[RoundRow]) -> dict[str, dict[str, float]]:
    """Three readings of every metric over the rounds that measured it: `last`, `mean_last_5` and `max`.

    Round 0, an untrained model, counts only if it is the only one.
    """
    trained = [row for row in rounds if row.round > 0] or rounds
    series: dict[str, list[float]] = {}
    for row in trained:
        for name, value in row.metrics.items():
            series.setdefault(name, []).append(value)
    return {
        name: {"last": values[-1], "mean_last_5": fmean(values[-5:]), "max": max(values)}
        for name, values in series.items()
    }


def summarize(identity: Mapping[str, Any], rounds: Sequence[RoundRow]) -> dict[str, Any]:
    """Summarize a run: `selections` of every metric, total bytes, mean seconds of each stage over its rounds."""
    stages = dict.fromkeys(stage for row in rounds for stage in row.seconds)
    return {
        "method": identity["method"],
        "data": identity["data"],
        "rounds": rounds[-1].round if rounds else 0,
        "digests": {key: identity[key] for key in DIGESTS if key in identity},
        "metrics": selections(rounds),
        "bytes_up": sum(row.bytes_up for row in rounds),
        "bytes_down": sum(row.bytes_down for row in rounds),
        "seconds": {stage: fmean(row.seconds[stage] for row in rounds if stage in row.seconds) for stage in stages},
    }


def selection_score(metrics: Mapping[str, float]) -> float | None:
    """The validation metric that selects the best round: HM, else Local, else All; None: not measured."""
    return next((metrics[name] for name in ("val/hm", "val/local", "val/all") if name in metrics), None)


def last_evaluated(rounds: Sequence[RoundRow]) -> int | None:
    """The last round with an accuracy; None: no round has one."""
    evaluated = (row.round for row in rounds if any(name.startswith(("val/", "test/")) for name in row.metrics))
    return max(evaluated, default=None)


def _accuracies(clients: pa.Table, by_domain: bool = False) -> pa.Table:
    """The rows with images over all domains, or of single ones, and their accuracy in `percent`."""
    domain = pc.field("domain")
    wanted = domain.is_valid() if by_domain else domain.is_null()
    measured = clients.filter((pc.field("split") != "train") & wanted & (pc.field("total") > 0))
    return _with_percent(measured)


def _with_percent(counts: pa.Table) -> pa.Table:
    percent = pc.divide(pc.multiply(pc.cast(counts["correct"], pa.float64()), 100.0), counts["total"])
    return counts.append_column("percent", percent)


def _with_hm(values: Mapping[str, float]) -> dict[str, float]:
    complete = dict(values)
    for suffix in ("", "_adapted"):
        parts = [values[name] for one in ("local", "base", "novel") if (name := one + suffix) in values]
        if len(parts) == 3:
            complete[f"hm{suffix}"] = harmonic_mean(parts)
    return complete


def participation_gap(metrics: Mapping[str, float]) -> float | None:
    """How much better the global model is on the own images of clients that train than on those of new ones, in points.

    `test/local_global - new_client/local` (Yuan et al., ICLR 2022): `test/local` may be of personal models. None: not
    measured.
    """
    seen, new = metrics.get(f"test/{SEEN}"), metrics.get(f"{NEW_CLIENT}/local")
    return None if seen is None or new is None else seen - new


def place(name: str) -> tuple[int, str, int]:
    """The place of a name (`base_ece`) in tables: by metric, first the accuracy, then measures, then domains."""
    metric, measure, domain = split_name(name)
    return METRICS.index(metric), domain or "", MEASURES.index(measure) if measure else -1


def on_test_images(metric: str) -> bool:
    """Whether a metric is measured on test images, so that what is selected by it looks better than it is."""
    return metric.startswith(("test/", f"{NEW_CLIENT}/"))
