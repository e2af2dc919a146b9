"""Find, create, fill and end the MLflow runs of the mirror."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.core.files import locked
from fedpgp.core.redaction import redacted
from fedpgp.federation.metrics import RoundRow
from fedpgp.tracking import connection

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
"""Set last, when everything including artifacts is mirrored. If it is missing, something may be."""
BEST = "best/"
"""Prefix of the metrics of the best round by validation, which may differ from the last values."""
MAX_LENGTH = 500
"""Longest value of a parameter or tag."""
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}
"""MLflow's status by the state on disk. `interrupted`: the status on disk is running, but the process is gone."""


@dataclass(frozen=True)
class Key:
    """A tag that identifies an MLflow run below its parent."""

    tag: str
    value: str
    parent: str | None = None
    """id of the parent run; None: there is no parent"""


class Writer(ABC):
    """Base class of the writers of runs and sweeps.

    Args:
        folder: the run or sweep on disk.
        uri: of the MLflow store.
        experiment: id of the MLflow experiment.
    """

    run_id: str
    """id of the MLflow run of the folder"""

    def __init__(self, folder: Path, uri: str, experiment: str) -> None:
        self._uri, self._experiment = uri, experiment
        self._client = connection.connect(uri)
        self._lock = folder / ".mirror.lock"

    def push(self) -> None:
        """Send what is new."""
        with connection.mlflow_errors(self._uri):
            self._push()

    @abstractmethod
    def _push(self) -> None: ...

    def _find_or_create(
        self, key: Key, name: str, created_ms: int, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> Run:
        """The MLflow run of that key, with its parameters (nested or flat). Several processes may call this at once."""
        with locked(self._lock):
            known = find(self._client, self._experiment, key.tag, key.value)
            found = next((run for run in known if run.data.tags.get(PARENT_TAG) == key.parent), None)
            if found is None:
                every = {**SOURCE, **tags, key.tag: key.value, **({PARENT_TAG: key.parent} if key.parent else {})}
                found = self._client.create_run(self._experiment, start_time=created_ms, tags=every, run_name=name)
            add_params(self._client, found, params)
        return found

    def _finish(
        self,
        run_id: str,
        mark: str,
        state: str,
        status: Mapping[str, Any],
        note: str | None,
        folder: AbstractContextManager[Path],
    ) -> None:
        """Set status, reason and description, upload the artifacts in `folder`, and mark the MLflow run as complete."""
        end(self._client, run_id, state, status)
        if note is not None:
            self._client.set_tag(run_id, NOTE_TAG, note)
        with folder as path:
            self._client.log_artifacts(run_id, str(path))
        self._client.set_tag(run_id, MIRRORED_TAG, mark)


def find(client: MlflowClient, experiment: str, tag: str, value: str) -> list[Run]:
    """The MLflow runs with this tag, at any level."""
    return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'"))


def add_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Add missing parameters; existing ones can never change."""
    from mlflow.entities import Param

    missing = [Param(name, value) for name, value in flat(params) if name not in run.data.params]
    for start in range(0, len(missing), PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=missing[start : start + PARAMS_PER_BATCH])


def reopen(client: MlflowClient, run: Run) -> None:
    """Set the status back to running, after a resume."""
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    for tag in (REASON_TAG, MIRRORED_TAG):
        if tag in run.data.tags:
            client.delete_tag(run.info.run_id, tag)


def end(client: MlflowClient, run_id: str, state: str, status: Mapping[str, Any]) -> None:
    """Set the final status and, unless the run has finished, the reason."""
    client.set_terminated(run_id, STATUS[state], end_time=status["timestamp_ms"])
    reason = "its process was killed" if state == "interrupted" else status["reason"]
    if reason:
        client.set_tag(run_id, REASON_TAG, redacted(reason)[:MAX_LENGTH])


def metrics(values: Mapping[str, float], step: int, timestamp_ms: int) -> list[Metric]:
    """Metrics of one step."""
    from mlflow.entities import Metric

    return [Metric(name, float(value), timestamp_ms, step) for name, value in values.items()]


def of_row(row: RoundRow | None, prefix: str = "", more: Mapping[str, float] | None = None) -> list[Metric]:
    """The metrics of a round, and `more`. Their time is that of the row, so sending them again adds nothing."""
    if row is None:
        return []
    named = {f"{prefix}{name}": value for name, value in row.metrics.items()}
    return metrics({**named, **(more or {})}, row.round, row.timestamp_ms)


def log_metrics(client: MlflowClient, run_id: str, values: Sequence[Metric]) -> None:
    """Send any number of metrics, in batches of MLflow's limit."""
    for start in range(0, len(values), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=values[start : start + METRICS_PER_BATCH])


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten `{"a": {"b": 1}}` to `("a.b", "1")`; lists and null become JSON."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (value if isinstance(value, str) else json.dumps(value))[:MAX_LENGTH]
