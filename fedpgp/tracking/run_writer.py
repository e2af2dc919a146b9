"""Mirror one run: its settings, each round, then its artifacts and status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from fedpgp.core.files import locked
from fedpgp.core.redaction import redacted
from fedpgp.federation.metrics import RoundRow
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold
from fedpgp.tracking import artifacts, connection, descriptions, mlflow_runs, provenance_tags
from fedpgp.tracking.mlflow_runs import BEST, MIRRORED_TAG, NOTE_TAG, Key, Writer

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

RUN_TAG = "fedpgp.run"
"""The tag that holds the unique id of a run on disk, as `RunFolder.create` assigned it."""
LAST_ROUND = "round"
"""The metric whose latest value is the last mirrored round. It is sent in one batch with the round's others."""
ROUNDS_PER_BATCH = 25
"""MLflow accepts 1000 metrics per batch; a round has at most 40."""


class RunWriter(Writer):
    """Writes the MLflow runs of one run: one at the top level, or one below each trial of which it is a fold.

    Args:
        parent: ids of the MLflow run of a trial and of its experiment; None: all existing MLflow runs of this run are
            updated, and one is created at the top level if it has none.
    """

    def __init__(self, store: RunFolder, uri: str, parent: tuple[str, str] | None = None) -> None:
        self._store = store
        with connection.mlflow_errors(uri):
            self._config = redacted(store.config_yaml)
            tree = yaml.safe_load(self._config)
            experiment = parent[1] if parent else connection.prepare(store.root, uri, tree["tracking"]["experiment"])
            super().__init__(store.path, uri, experiment)
            runs = mlflow_runs.find(self._client, experiment, RUN_TAG, store.identity["id"])
            own = self._own(parent[0] if parent else None) if parent or not runs else runs[0]
            self.run_id = str(own.info.run_id)
            if store.state == "running":
                for run in {run.info.run_id: run for run in (*runs, own)}.values():
                    mlflow_runs.reopen(self._client, run)
            self._sent = {run.info.run_id: int(run.data.metrics.get(LAST_ROUND, -1)) for run in (*runs, own)}

    def _own(self, parent: str | None) -> Run:
        """Find or create the MLflow run below a parent, or at the top level."""
        identity, tree = self._store.identity, yaml.safe_load(self._config)
        tags = {**provenance_tags.tags_of(identity), NOTE_TAG: descriptions.of_run(self._store, tree)}
        name = str(Fold(tree["seed"], tree["protocol"]["held_out"])) if parent else self._store.path.name
        found = self._find_or_create(Key(RUN_TAG, identity["id"], parent), name, identity["created_ms"], tags, tree)
        provenance_tags.add_data(self._client, found, [identity])
        return found

    def _push(self) -> None:
        """Send new rounds and, once the run has ended, its artifacts and status."""
        state = self._store.state  # read first, so that an ended run is sent with all its rows
        rows = self._store.rounds(after=min(self._sent.values()))
        for run_id in self._sent:
            self._send(run_id, [row for row in rows if row.round > self._sent[run_id]])
            if state != "running":
                self._end(run_id, state)

    def _send(self, run_id: str, rows: Sequence[RoundRow]) -> None:
        for start in range(0, len(rows), ROUNDS_PER_BATCH):
            batch = rows[start : start + ROUNDS_PER_BATCH]
            self._client.log_batch(run_id, metrics=[metric for row in batch for metric in _metrics(row)])
            self._sent[run_id] = batch[-1].round

    def _end(self, run_id: str, state: str) -> None:
        """Send status and artifacts, unless they have been sent."""
        store = RunFolder.open(self._store.path)  # opened again to read the last checkpoints
        status, rows = dict(store.status), store.rounds()
        if state == "interrupted" and rows:
            status["timestamp_ms"] = rows[-1].timestamp_ms
        mark = f"{state} {status['timestamp_ms']}"
        with locked(self._lock):  # the mirrors of the run and of its sweep may do this at the same time
            if self._client.get_run(run_id).data.tags.get(MIRRORED_TAG) == mark:
                return
            best = next((row for row in rows if row.round == store.best), None)
            mlflow_runs.log_metrics(self._client, run_id, mlflow_runs.of_row(best, BEST))
            note = descriptions.of_run(store, yaml.safe_load(self._config))
            self._finish(run_id, mark, state, status, note, artifacts.of_run(store, self._config))


def _metrics(row: RoundRow) -> list[Metric]:
    """All numbers of a round, with times, bytes and its number."""
    more = {f"seconds/{stage}": value for stage, value in row.seconds.items()}
    more |= {"participants": row.participants, "bytes/up": row.bytes_up, "bytes/down": row.bytes_down}
    return mlflow_runs.of_row(row, more=more | {LAST_ROUND: row.round})
