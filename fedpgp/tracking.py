"""MLflow as a mirror of the rows on disk. Nothing is read back from it, and no run waits for it or fails with it."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import yaml

from fedpgp.errors import FedPGPError
from fedpgp.evaluation import last_evaluated, per_client_table
from fedpgp.files import locked
from fedpgp.records import RoundRow
from fedpgp.store import RunStore

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

RUN_TAG = "fedpgp.run"
"""The tag by which a run on disk finds its mirror: the unique id that `RunStore.create` gave it."""
LAST_ROUND = "round"
"""The metric whose latest value is the last mirrored round: it is stored together with the others, or not at all."""
ROUNDS_PER_BATCH = 25
"""At most 40 metrics a round and 1000 a batch, MLflow's own limit."""
MAX_LENGTH = 500
"""Longest value of a parameter or tag."""
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


def default_uri(root: Path) -> str:
    """The SQLite store of a storage root."""
    return f"sqlite:///{root.absolute()}/mlflow.db"


def prepare(root: Path, uri: str, experiment: str) -> str:
    """Create the MLflow store and the experiment where they are missing. Safe to call from several processes.

    Args:
        root: the storage root; artifacts go to `root/mlartifacts`, unless a server decides.

    Returns:
        The experiment's id.

    Raises:
        FedPGPError: the store cannot be reached.
    """
    root.mkdir(parents=True, exist_ok=True)
    remote = uri.startswith(("http:", "https:", "databricks"))
    with _told(uri), nullcontext() if remote else locked(root / ".mlflow.lock"):
        client = _client(uri)
        if (found := client.get_experiment_by_name(experiment)) is not None:
            return str(found.experiment_id)
        location = None if remote else (root.absolute() / "mlartifacts").as_uri()
        return client.create_experiment(experiment, artifact_location=location)


def sync(run_dir: Path, uri: str) -> str:
    """Bring the mirror of a run up to date; what is there already is not sent again.

    Returns:
        The id of the MLflow run, which is created if missing.

    Raises:
        RunError: `run_dir` is not the folder of a run.
        FedPGPError: MLflow cannot be reached, or refuses.
    """
    writer = _Writer(RunStore.open(run_dir), uri)
    writer.push()
    return writer.run_id


class Mirror:
    """Keeps the mirror of a running run up to date from a thread of its own.

    A failing MLflow is told once, as a warning; every later poke tries again.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self._store, self._uri = RunStore.open(run_dir), uri
        self._writer: _Writer | None = None
        self._wake, self._closing, self._warned = threading.Event(), False, False
        self._thread = threading.Thread(target=self._loop, name="mlflow mirror", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """There are new rows. Returns at once."""
        self._wake.set()

    def close(self, timeout: float = 60.0) -> None:
        """Mirror what is left, the run's final status included, waiting at most `timeout` seconds for it."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._warn(f"MLflow at {redacted(self._uri)}: no answer for {timeout:g} seconds")

    def _loop(self) -> None:
        closing = False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing  # read before the push, so that the last push sees all rows
            try:
                self._writer = self._writer or _Writer(self._store, self._uri)
                self._writer.push()
            except FedPGPError as error:
                self._writer = None
                self._warn(str(error))

    def _warn(self, what: str) -> None:
        if not self._warned:
            log.warning("%s; the run goes on, `fedpgp track sync %s` catches up", what, self._store.path)
        self._warned = True


class _Writer:
    """The mirror of one run: finds or creates it once, then sends what is new."""

    def __init__(self, store: RunStore, uri: str) -> None:
        self._store, self._uri = store, uri
        with _told(uri):
            self._config = redacted(store.config_yaml)
            tree = yaml.safe_load(self._config)
            experiment_id = prepare(store.root, uri, tree["tracking"]["experiment"])
            self._client = _client(uri)
            self.run_id = self._find_or_create(experiment_id, tree)
            run = self._client.get_run(self.run_id)
            self._sent = int(run.data.metrics.get(LAST_ROUND, -1))
            if run.info.status != "RUNNING" and store.status["state"] == "running":
                self._client.update_run(self.run_id, status="RUNNING")

    def push(self) -> None:
        """Send the rounds that are new and, once the run has ended, its artifacts and status."""
        with _told(self._uri):
            rows = self._store.rounds(after=self._sent)
            for start in range(0, len(rows), ROUNDS_PER_BATCH):
                batch = rows[start : start + ROUNDS_PER_BATCH]
                self._client.log_batch(self.run_id, metrics=[metric for row in batch for metric in _metrics(row)])
                self._sent = batch[-1].round
            status = self._store.status
            if status["state"] in STATUS:
                self._end(status)

    def _find_or_create(self, experiment_id: str, tree: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        identity = self._store.identity
        with locked(self._store.path / ".mirror.lock"):
            found = self._client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{identity['id']}'")
            if found:
                run_id = found[0].info.run_id
            else:
                tags = {f"fedpgp.{key}": value for key, value in _flat(identity)} | {RUN_TAG: identity["id"]}
                run = self._client.create_run(
                    experiment_id, start_time=identity["created_ms"], tags=tags, run_name=self._store.path.name
                )
                run_id = run.info.run_id
            self._client.log_batch(run_id, params=[Param(key, value) for key, value in _flat(tree)])
        return str(run_id)

    def _end(self, status: Mapping[str, Any]) -> None:
        self._client.log_text(self.run_id, self._config, "config.yaml")
        if (partition := self._store.partition) is not None:
            sink = pa.BufferOutputStream()
            pa.csv.write_csv(partition, sink)
            self._client.log_text(self.run_id, sink.getvalue().to_pybytes().decode(), "partition.csv")
        if (last := last_evaluated(self._store.rounds())) is not None:
            sink = pa.BufferOutputStream()
            pa.csv.write_csv(per_client_table(self._store.clients(), last), sink)
            self._client.log_text(self.run_id, sink.getvalue().to_pybytes().decode(), "clients.csv")
        if (summary := self._store.summary) is not None:
            self._client.log_dict(self.run_id, summary, "summary.json")
        if status["reason"]:
            self._client.set_tag(self.run_id, "fedpgp.reason", redacted(status["reason"])[:MAX_LENGTH])
        self._client.set_terminated(self.run_id, STATUS[status["state"]], end_time=status["timestamp_ms"])


def redacted(text: str) -> str:
    """`text` with the user and password of every URI in it replaced."""
    return re.sub(r"://[^/\s]*@", "://***@", text)


def _metrics(row: RoundRow) -> list[Metric]:
    """A round as MLflow stores it. The time is the row's own: sent twice, it stays one."""
    from mlflow.entities import Metric

    values = dict(row.metrics) | {f"seconds/{stage}": value for stage, value in row.seconds.items()}
    values |= {"participants": row.participants, "bytes/up": row.bytes_up, "bytes/down": row.bytes_down}
    values[LAST_ROUND] = row.round
    return [Metric(name, float(value), row.timestamp_ms, row.round) for name, value in values.items()]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`{"a": {"b": 1}}` as `("a.b", "1")`; lists and null as JSON."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (value if isinstance(value, str) else json.dumps(value))[:MAX_LENGTH]


def _client(uri: str) -> MlflowClient:
    # Read by MLflow: no usage statistics to its makers, and no run URL (with the password in it) on stdout.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    from mlflow.tracking import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic.runtime.migration"):  # a line per table of a new store
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the store and no secret."""
    try:
        yield
    except FedPGPError:
        raise
    except Exception as error:  # a mirror never fails a run, whatever its libraries raise
        what = redacted(str(error)).strip().partition("\n")[0] or type(error).__name__
        raise FedPGPError(f"MLflow at {redacted(uri)}: {what}") from None
