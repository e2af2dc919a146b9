"""Accuracies from counts: Local, Base, Novel and their harmonic mean, per client and on average."""

from collections.abc import Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.federation.records import RoundRow

METRICS = (
    "local", "base", "novel", "hm", "all", "held_out", "local_global", "base_global", "novel_global", "all_global",
    "held_out_global", "local_before_aggregation",
)  # fmt: skip
"""The metrics of a split, in the order of the tables; `hm` is computed from local, base and novel."""
DIGESTS = ("config_digest", "manifest_digest", "partition_digest", "weights_fingerprint")
"""Digests that two runs of the same experiment share."""


def round_metrics(clients: pa.Table) -> dict[str, float]:
    """The metrics of a round from its rows in `records.CLIENT_SCHEMA`: `val/local`, `test/hm`, `train/loss`, ...

    Accuracies are in percent: unweighted means over the clients that have images for a metric. `hm` is the harmonic
    mean of the three means, as in the paper, not the mean over clients. Metrics that were not measured are absent.
    """
    by_split: dict[str, dict[str, float]] = {}
    means = _accuracies(clients).group_by(["split", "metric"], use_threads=False).aggregate([("percent", "mean")])
    for row in means.sort_by("split").to_pylist():
        by_split.setdefault(row["split"], {})[row["metric"]] = row["percent_mean"]
    complete = {split: _with_hm(values) for split, values in by_split.items()}
    metrics = {
        f"{split}/{name}": values[name] for split, values in complete.items() for name in METRICS if name in values
    }
    return metrics | _losses(clients.filter((pc.field("split") == "train") & pc.is_finite(pc.field("loss"))))


def _losses(train: pa.Table) -> dict[str, float]:
    """`train/loss` and its parts: means over the clients whose loss is finite."""
    whole = train.filter(pc.field("metric") == "train")
    if not whole.num_rows:
        return {}
    parts = train.filter((pc.field("metric") != "train") & pc.field("client").isin(whole["client"]))
    means = parts.group_by("metric", use_threads=False).aggregate([("loss", "mean")]).sort_by("metric")
    names = [f"train/{name}" for name in means["metric"].to_pylist()]
    return {"train/loss": pc.mean(whole["loss"]).as_py()} | dict(
        zip(names, means["loss_mean"].to_pylist(), strict=True)
    )


def per_client_table(clients: pa.Table, round: int) -> pa.Table:
    """One row per client and split: client, split, and each measured metric in percent; null: no images for it."""
    by_client: dict[tuple[int, str], dict[str, float]] = {}
    for row in _accuracies(clients.filter(pc.field("round") == round)).to_pylist():
        by_client.setdefault((row["client"], row["split"]), {})[row["metric"]] = row["percent"]
    rows = {key: _with_hm(values) for key, values in sorted(by_client.items())}
    measured = [name for name in METRICS if any(name in values for values in rows.values())]
    schema = pa.schema([("client", pa.int32()), ("split", pa.string()), *((name, pa.float64()) for name in measured)])
    return pa.Table.from_pylist(
        [{"client": client, "split": split, **row} for (client, split), row in rows.items()], schema
    )


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
    evaluated = (row.round for row in rounds if any(not name.startswith("train/") for name in row.metrics))
    return max(evaluated, default=None)


def _accuracies(clients: pa.Table) -> pa.Table:
    """The rows over all domains with images, and their accuracy in `percent`."""
    measured = clients.filter((pc.field("split") != "train") & pc.field("domain").is_null() & (pc.field("total") > 0))
    percent = pc.divide(pc.multiply(pc.cast(measured["correct"], pa.float64()), 100.0), measured["total"])
    return measured.append_column("percent", percent)


def _with_hm(values: Mapping[str, float]) -> dict[str, float]:
    parts = [values[name] for name in ("local", "base", "novel") if name in values]
    return {**values, "hm": harmonic_mean(parts)} if len(parts) == 3 else dict(values)
