"""An entry of the mirror, whatever it stands for: found by its tags or created, filled, ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.core.files import locked
from fedpgp.core.redaction import redacted
from fedpgp.federation.records import RoundRow

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
"""What MLflow shows as the description, in Markdown."""
SOURCE = {"mlflow.source.name": "fedpgp", "mlflow.source.type": "LOCAL"}
DIGEST_TAG = "fedpgp.config_digest"
REASON_TAG = "fedpgp.reason"
MIRRORED_TAG = "fedpgp.mirrored"
"""Set last of all: the end that is mirrored whole, artifacts and all. Absent: something may be missing."""
BEST = "best/"
"""Prefix of the metrics of the best round by validation, which the last value of a metric need not be."""
MAX_LENGTH = 500
"""Longest value of a parameter or tag."""
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}
"""How MLflow says that something ended; interrupted: it says running, but its process is gone."""


@dataclass(frozen=True)
class Key:
    """What an entry is found by."""

    tag: str
    value: str
    parent: str | None = None
    """id of the entry above; None: it stands at the top"""


def find(client: MlflowClient, experiment: str, tag: str, value: str) -> list[Run]:
    """The entries with this tag, wherever they stand."""
    return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'"))


def find_or_create(
    client: MlflowClient,
    experiment: str,
    key: Key,
    lock: Path,
    *,
    name: str,
    created_ms: int,
    tags: Mapping[str, str],
    params: Mapping[str, Any],
) -> Run:
    """The one entry of that key, with its parameters.

    Args:
        lock: held meanwhile, so that of several processes one creates it.
        params: nested or flat.
    """
    with locked(lock):
        known = find(client, experiment, key.tag, key.value)
        found = next((run for run in known if run.data.tags.get(PARENT_TAG) == key.parent), None)
        if found is None:
            every = {**SOURCE, **tags, key.tag: key.value, **({PARENT_TAG: key.parent} if key.parent else {})}
            found = client.create_run(experiment, start_time=created_ms, tags=every, run_name=name)
        add_params(client, found, params)
    return found


def add_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Those parameters that the entry lacks: one that is there can never change."""
    from mlflow.entities import Param

    missing = [Param(name, value) for name, value in flat(params) if name not in run.data.params]
    for start in range(0, len(missing), PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=missing[start : start + PARAMS_PER_BATCH])


def reopen(client: MlflowClient, run: Run) -> None:
    """What had ended goes on."""
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    for tag in (REASON_TAG, MIRRORED_TAG):
        if tag in run.data.tags:
            client.delete_tag(run.info.run_id, tag)


def end(client: MlflowClient, run_id: str, status: Mapping[str, Any], state: str) -> None:
    """The final status and, if it went wrong, why."""
    client.set_terminated(run_id, STATUS[state], end_time=status["timestamp_ms"])
    reason = "its process was killed" if state == "interrupted" else status["reason"]
    if reason:
        client.set_tag(run_id, REASON_TAG, redacted(reason)[:MAX_LENGTH])


def metrics(values: Mapping[str, float], step: int, timestamp_ms: int) -> list[Metric]:
    """Values of one step."""
    from mlflow.entities import Metric

    return [Metric(name, float(value), timestamp_ms, step) for name, value in values.items()]


def best(values: Mapping[str, float], step: int, timestamp_ms: int) -> list[Metric]:
    """The best round by validation, under names of its own, so that a table of entries can be sorted by it."""
    return metrics({f"{BEST}{name}": value for name, value in values.items()}, step, timestamp_ms)


def of_row(row: RoundRow) -> list[Metric]:
    """The metrics of a round, at the time of the row: sent twice, they stay one."""
    return metrics(row.metrics, row.round, row.timestamp_ms)


def log_metrics(client: MlflowClient, run_id: str, values: Sequence[Metric]) -> None:
    """Any number of metrics, in batches as large as MLflow takes them."""
    for start in range(0, len(values), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=values[start : start + METRICS_PER_BATCH])


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"a": {"b": 1}}` as `("a.b", "1")`; lists and null as JSON."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (value if isinstance(value, str) else json.dumps(value))[:MAX_LENGTH]
