"""The mirror of one run: its settings, then round after round, then its artifacts and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from fedpgp.core.files import locked
from fedpgp.core.redaction import redacted
from fedpgp.federation.records import RoundRow
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold
from fedpgp.tracking import artifacts, connection, descriptions, mlflow_runs, provenance_tags
from fedpgp.tracking.mlflow_runs import Key

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

RUN_TAG = "fedpgp.run"
"""The tag by which a run on disk finds its entries: the unique id that `RunFolder.create` gave it."""
LAST_ROUND = "round"
"""The metric whose latest value is the last mirrored round: it is stored together with the others, or not at all."""
ROUNDS_PER_BATCH = 25
"""At most 40 metrics a round and 1000 a batch, MLflow's own limit."""


class RunWriter:
    """The entries of one run: one at the top, or one under each trial of which it is a fold.

    Args:
        under: ids of the entry of a trial and of its MLflow experiment; None: whatever entries there are are brought
            up to date, and one is created at the top if there is none.
    """

    def __init__(self, store: RunFolder, uri: str, under: tuple[str, str] | None = None) -> None:
        self._store, self._uri = store, uri
        self._lock = store.path / ".mirror.lock"
        with connection.mlflow_errors(uri):
            self._config = redacted(store.config_yaml)
            tree = yaml.safe_load(self._config)
            experiment = under[1] if under else connection.prepare(store.root, uri, tree["tracking"]["experiment"])
            self._client = connection.connect(uri)
            identity = store.identity
            found = {
                run.info.run_id: run for run in mlflow_runs.find(self._client, experiment, RUN_TAG, identity["id"])
            }
            own = next(iter(found.values()), None)
            if under or own is None:
                own = self._find_or_create(experiment, identity, tree, under[0] if under else None)
            self.run_id = str(own.info.run_id)
            running = store.state == "running"
            self._sent = {run_id: self._opened(run, running) for run_id, run in {**found, self.run_id: own}.items()}

    def push(self) -> None:
        """Send the rounds that are new and, once the run has ended, its artifacts and status."""
        with connection.mlflow_errors(self._uri):
            state = self._store.state  # before the rows: those of a run that has ended are all there
            rows = self._store.rounds(after=min(self._sent.values()))
            for run_id in self._sent:
                self._send(run_id, [row for row in rows if row.round > self._sent[run_id]])
                if state != "running":
                    self._end(run_id, state)

    def _find_or_create(
        self, experiment: str, identity: Mapping[str, Any], tree: Mapping[str, Any], parent: str | None
    ) -> Run:
        tags = {**provenance_tags.tags_of(identity), mlflow_runs.NOTE_TAG: descriptions.of_run(self._store, tree)}
        name = self._store.path.name
        if parent:
            name = str(Fold(tree["seed"], tree["protocol"]["held_out"]))
        found = mlflow_runs.find_or_create(
            self._client, experiment, Key(RUN_TAG, identity["id"], parent), self._lock,
            name=name, created_ms=identity["created_ms"], tags=tags, params=tree,
        )  # fmt: skip
        provenance_tags.add_data(self._client, found, [identity])
        return found

    def _opened(self, run: Run, running: bool) -> int:
        """The last round that an entry has; one that had ended goes on if its run does."""
        if running:
            mlflow_runs.reopen(self._client, run)
        return int(run.data.metrics.get(LAST_ROUND, -1))

    def _send(self, run_id: str, rows: Sequence[RoundRow]) -> None:
        for start in range(0, len(rows), ROUNDS_PER_BATCH):
            batch = rows[start : start + ROUNDS_PER_BATCH]
            self._client.log_batch(run_id, metrics=[metric for row in batch for metric in _metrics(row)])
            self._sent[run_id] = batch[-1].round

    def _end(self, run_id: str, state: str) -> None:
        """How it ended, and what it leaves; nothing if all that is there already."""
        store = RunFolder.open(self._store.path)  # one that has been open for long does not know the last checkpoints
        status, rows = dict(store.status), store.rounds()
        if state == "interrupted" and rows:
            status["timestamp_ms"] = rows[-1].timestamp_ms
        ended = f"{state} {status['timestamp_ms']}"
        with locked(self._lock):  # a run's own mirror and that of its sweep come here at the same time
            if self._client.get_run(run_id).data.tags.get(mlflow_runs.MIRRORED_TAG) == ended:
                return
            mlflow_runs.end(self._client, run_id, status, state)
            best = next((row for row in rows if row.round == store.best), None)
            if best is not None:
                self._client.log_batch(run_id, metrics=mlflow_runs.best(best.metrics, best.round, best.timestamp_ms))
            self._client.set_tag(run_id, mlflow_runs.NOTE_TAG, descriptions.of_run(store, yaml.safe_load(self._config)))
            with artifacts.of_run(store, self._config) as folder:
                self._client.log_artifacts(run_id, str(folder))
            self._client.set_tag(run_id, mlflow_runs.MIRRORED_TAG, ended)


def _metrics(row: RoundRow) -> list[Metric]:
    """A round as MLflow stores it. The time is the row's own: sent twice, it stays one."""
    values = dict(row.metrics) | {f"seconds/{stage}": value for stage, value in row.seconds.items()}
    values |= {"participants": row.participants, "bytes/up": row.bytes_up, "bytes/down": row.bytes_down}
    values[LAST_ROUND] = row.round
    return mlflow_runs.metrics(values, row.round, row.timestamp_ms)
