"""Find, create, fill and end the MLflow runs of the mirror. Parents have the tags that their folds have in common."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp import config
from fedpgp.core.files import locked
from fedpgp.core.text import redacted
from fedpgp.federation.metrics import RoundRow
from fedpgp.tracking import artifact_links, connection
from fedpgp.tracking.names import PARENT_TAG, SWEEP_TAG, metric_key

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

NOTE_TAG = "mlflow.note.content"
"""What MLflow shows as the description, in Markdown."""
TRIAL_TAG = "fedpgp.trial"
COMMIT_TAG = "mlflow.source.git.commit"
SOURCE = {"mlflow.source.name": "fedpgp", "mlflow.source.type": "LOCAL"}
DIGEST_TAG = "fedpgp.config_digest"
REASON_TAG = "fedpgp.reason"
MIRRORED_TAG = "fedpgp.mirrored"
"""Set last, when everything including artifacts is mirrored. If it is missing, something may be."""
BEST = "best/"
"""Prefix of the metrics of the best round by validation, which may differ from the last values."""
UNTAGGED = ("client_names", "class_names", "num_examples")
"""Parts of the identity that are long lists; the artifacts contain them."""
OWN = ("id", "name", "created_ms", "config_digest")
"""Parts of the identity that belong to a single run, not to its trial."""
MAX_LENGTH = 500
"""Longest value of a parameter or tag."""
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}
"""MLflow's status by the state on disk. `interrupted`: the status on disk is running, but the process is gone."""


class Writer(ABC):
    """Base class of the writers of runs and sweeps; `experiment` is the id of the MLflow experiment to write to."""

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
        self, key: str, tags: Mapping[str, str], name: str, created_ms: int, params: Mapping[str, Any]
    ) -> Run:
        """The MLflow run with the same tag `key` and parent as in `tags`, with its parameters (nested or flat).

        One below an earlier MLflow run of the same parent is moved below the present one. Several processes may call
        this at once.
        """
        with locked(self._lock):
            known = find(self._client, self._experiment, key, tags[key])
            parent = tags.get(PARENT_TAG)
            own = [run for run in known if run.data.tags.get(PARENT_TAG) == parent]
            found = max(own, key=self._children) if len(own) > 1 else next(iter(own), None)
            if found is None and parent is not None:
                found = next((run for run in known if replaces(self._client, parent, run.data.tags)), None)
                if found is not None:
                    self._client.set_tag(found.info.run_id, PARENT_TAG, parent)
            if found is None:
                found = self._create(key, {**SOURCE, **tags}, name, created_ms)
            add_params(self._client, found, params)
        return found

    def _create(self, key: str, tags: dict[str, str], name: str, created_ms: int) -> Run:
        """Create an MLflow run. If MLflow's client had to ask twice, as the first answer was lost, delete the first."""
        found = self._client.create_run(self._experiment, start_time=created_ms, tags=tags, run_name=name)
        for run in find(self._client, self._experiment, key, tags[key]):
            twin = run.data.tags.get(PARENT_TAG) == tags.get(PARENT_TAG)
            if twin and run.info.run_id != found.info.run_id:
                self._client.delete_run(run.info.run_id)
        return found

    def _children(self, run: Run) -> int:
        """How many runs are below an entry: none, if it was deleted, replaced and restored."""
        return len(find(self._client, self._experiment, PARENT_TAG, run.info.run_id))

    def _finish(
        self,
        run_id: str,
        mark: str,
        state: str,
        status: Mapping[str, Any],
        note: str,
        write_artifacts: Callable[[Path], None],
    ) -> None:
        """Set status, reason and description, upload the artifacts, and mark the MLflow run as complete.

        Below the first paragraph of the description are links to the artifacts, and below all of it the curves.
        """
        end(self._client, run_id, state, status)
        with tempfile.TemporaryDirectory(prefix="fedpgp-artifacts-") as folder:
            write_artifacts(Path(folder))
            files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
            self._client.log_artifacts(run_id, folder)
        self._client.set_tag(run_id, NOTE_TAG, artifact_links.linked(note, self._experiment, run_id, files))
        self._client.set_tag(run_id, MIRRORED_TAG, mark)


def find(client: MlflowClient, experiment: str, tag: str, value: str) -> list[Run]:
    """The MLflow runs with this tag, at any level."""
    return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'"))


def replaces(client: MlflowClient, parent: str, tags: Mapping[str, str]) -> bool:
    """Whether `parent` is the present MLflow run of the sweep or trial below which a run with these tags was created.

    It is if the run's own parent is of the same sweep or trial, and was deleted or is below the same parent itself. A
    parent that MLflow has removed for good cannot be compared: every present one replaces it.
    """
    from mlflow.exceptions import MlflowException

    if (earlier_id := tags.get(PARENT_TAG)) is None:
        return False
    try:
        earlier = client.get_run(earlier_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
    present = client.get_run(parent)
    same = [SWEEP_TAG, TRIAL_TAG, *(() if connection.is_deleted(earlier.info) else (PARENT_TAG,))]
    return all(earlier.data.tags.get(key) == present.data.tags.get(key) for key in same)


def add_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Add missing parameters; existing ones can never change."""
    from mlflow.entities import Param

    missing = [Param(name, value) for name, value in flat(params).items() if name not in run.data.params]
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
    begin = client.get_run(run_id).info.start_time  # perhaps by the clock of another machine
    client.set_terminated(run_id, STATUS[state], end_time=max(begin, status["timestamp_ms"]))
    reason = "its process was killed" if state == "interrupted" else status["reason"]
    if reason:
        client.set_tag(run_id, REASON_TAG, redacted(reason)[:MAX_LENGTH])


def metrics(values: Mapping[str, float], step: int, timestamp_ms: int, prefix: str = "") -> list[Metric]:
    """Metrics of one step."""
    from mlflow.entities import Metric

    return [Metric(f"{prefix}{metric_key(name)}", float(value), timestamp_ms, step) for name, value in values.items()]


def of_row(row: RoundRow | None, prefix: str = "") -> list[Metric]:
    """The metrics of a round. Their time is that of the row, so sending them again adds nothing."""
    return metrics(row.metrics, row.round, row.timestamp_ms, prefix) if row else []


def log_metrics(client: MlflowClient, run_id: str, values: Sequence[Metric]) -> None:
    """Send any number of metrics, in batches of MLflow's limit."""
    for start in range(0, len(values), METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=values[start : start + METRICS_PER_BATCH])


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten `{"a": {"b": 1}}` to `{"a.b": "1"}`; lists and null become JSON."""
    return {
        key: (value if isinstance(value, str) else json.dumps(value))[:MAX_LENGTH]
        for key, value in config.leaves(tree, prefix).items()
    }


def tags_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """The identity of a run as tags `fedpgp.method` and so on, and the commit in the tag that MLflow shows."""
    shown = {key: value for key, value in identity.items() if key not in UNTAGGED and value is not None}
    commit = {COMMIT_TAG: identity["git_commit"]} if "git_commit" in shown else {}
    return {**flat(shown, "fedpgp."), **commit}


def share(client: MlflowClient, run_id: str, identities: Sequence[Mapping[str, Any]]) -> None:
    """Set on a parent the tags and data sets of its folds: all data sets, but only tags on which the folds agree."""
    from mlflow.entities import RunTag

    if not identities:
        return
    folds = [
        tags_of({key: value for key, value in identity.items() if key not in OWN}).items() for identity in identities
    ]
    agreed = dict(set(folds[0]).intersection(*folds[1:]))
    run = client.get_run(run_id)
    names = {name for fold in folds for name, _ in fold}
    for name in sorted((names - agreed.keys()) & run.data.tags.keys()):
        client.delete_tag(run_id, name)
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in sorted(agreed.items())])
    add_data(client, run, identities)


def add_data(client: MlflowClient, run: Run, identities: Sequence[Mapping[str, Any]]) -> None:
    """Add the data sets, identified by name and digest, that are not yet inputs of an MLflow run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    used = {(one["data"], one["manifest_digest"]) for one in identities if "manifest_digest" in one}
    inputs = run.inputs.dataset_inputs if run.inputs else ()
    known = {(one.dataset.name, one.dataset.digest) for one in inputs}
    missing = [
        DatasetInput(
            Dataset(name, digest, source_type="code", source=json.dumps({"tags": SOURCE})),
            [InputTag("mlflow.data.context", "training")],
        )
        for name, digest in sorted(used - known)
    ]
    if not missing:
        return
    try:
        client.log_inputs(run.info.run_id, datasets=missing)
    except MlflowException:  # another process has just stored the same data set; the second attempt finds it
        client.log_inputs(run.info.run_id, datasets=missing)
