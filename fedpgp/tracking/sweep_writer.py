"""The mirror of a sweep: an entry of its own, one below it for each trial that has begun, their folds below those."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from fedpgp.core.errors import RunError
from fedpgp.core.redaction import redacted
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Result, SweepFolder
from fedpgp.tracking import artifacts, connection, descriptions, mlflow_runs, provenance_tags
from fedpgp.tracking.mlflow_runs import Key
from fedpgp.tracking.run_writer import RUN_TAG, RunWriter
from fedpgp.tracking.trial_summary import Outcome, best_of, outcome

if TYPE_CHECKING:
    from mlflow.entities import Run

SWEEP_TAG = "fedpgp.sweep"
TRIAL_TAG = "fedpgp.trial"
SPACE = "space."
"""Prefix of the parameters of a sweep that say what it searches over."""


def tag_of(head: Mapping[str, Any]) -> str:
    """The value of `SWEEP_TAG` by which a sweep finds its entry: another sweep of the same digest has another."""
    return f"{head['id']}-{head['created_ms']}"


class SweepWriter:
    """The entries of one sweep: its own is found or created at once, the others as trials begin and end."""

    def __init__(self, folder: SweepFolder, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._outcomes: dict[str, Outcome] = {}
        with connection.mlflow_errors(uri):
            self._settings = yaml.safe_load(redacted(folder.spec_yaml))
            self._head, self._planned = folder.head, {trial.id: trial for trial in folder.trials}
            tracking = self._settings["base"].get("tracking") or {}
            self._experiment = connection.prepare(folder.root, uri, tracking.get("experiment", "fedpgp"))
            self._client = connection.connect(uri)
            digest, created_ms = self._head["id"], self._head["created_ms"]
            key = Key(SWEEP_TAG, tag_of(self._head))
            run = self._entry(key, folder.path.name, digest, created_ms, _params(self._settings, self._head))
            if folder.state == "running":
                mlflow_runs.reopen(self._client, run)
            self.run_id = str(run.info.run_id)

    def begin(self, trial: str, created_ms: int) -> tuple[str, str]:
        """The entry of a trial of which a fold has begun, and the MLflow experiment where it is.

        Raises:
            RunError: the sweep has no such trial.
        """
        if trial not in self._planned:
            raise RunError(f"{self._folder.path}: has no trial {trial}")
        with connection.mlflow_errors(self._uri):
            run = self._trial(trial, created_ms)
            if self._folder.result(trial) is None and self._folder.state == "running":
                mlflow_runs.reopen(self._client, run)
        return str(run.info.run_id), self._experiment

    def push(self) -> None:
        """Send the trials that have ended and, once the sweep has, its comparison and status."""
        with connection.mlflow_errors(self._uri):
            state = self._folder.state  # before the results: those of a sweep that has ended are all there
            results = self._folder.results()
            for result in results.values():
                if result.id not in self._outcomes or self._outcomes[result.id].result != result:
                    self._outcomes[result.id] = self._end_trial(result)
            outcomes = [self._outcomes[trial] for trial in results]
            self._sum_up(outcomes)
            if state != "running":
                self._end(state, outcomes)

    def _trial(self, trial: str, created_ms: int) -> Run:
        planned = self._planned[trial]
        return self._entry(Key(TRIAL_TAG, trial, self.run_id), planned.label, trial, created_ms, planned.settings)

    def _entry(self, key: Key, name: str, digest: str, created_ms: int, params: Any) -> Run:
        return mlflow_runs.find_or_create(
            self._client, self._experiment, key, self._folder.path / ".mirror.lock",
            name=name, created_ms=created_ms, tags={mlflow_runs.DIGEST_TAG: digest}, params=params,
        )  # fmt: skip

    def _end_trial(self, result: Result) -> Outcome:
        """A trial with its folds; nothing is sent if all is there already."""
        found = outcome(self._folder, self._planned[result.id], result)
        run = self._trial(result.id, found.created_ms)
        run_id = str(run.info.run_id)
        for store in found.runs.values():
            RunWriter(store, self._uri, (run_id, self._experiment)).push()
        ended = f"{result.state} {zlib.crc32(json.dumps(asdict(result)).encode())}"
        if run.data.tags.get(mlflow_runs.MIRRORED_TAG) == ended:
            return found
        status = {"timestamp_ms": found.ended_ms, "reason": result.reason}
        mlflow_runs.end(self._client, run_id, status, result.state)
        for store in list(found.runs.values())[:1]:
            settings = yaml.safe_load(redacted(store.config_yaml))
            del settings["seed"], settings["protocol"]["held_out"]
            mlflow_runs.add_params(self._client, self._client.get_run(run_id), settings)
        provenance_tags.share(self._client, run_id, [store.identity for store in found.runs.values()])
        metrics = [metric for row in found.rounds for metric in mlflow_runs.of_row(row)]
        if found.best is not None:
            metrics += mlflow_runs.best(found.best.metrics, found.best.round, found.best.timestamp_ms)
        mlflow_runs.log_metrics(self._client, run_id, metrics)
        self._client.set_tag(run_id, mlflow_runs.NOTE_TAG, descriptions.of_trial(found, self._head["name"]))
        with artifacts.of_trial(found, self._folder.traceback(result.id), self._head["metric"]) as folder:
            self._client.log_artifacts(run_id, str(folder))
        self._client.set_tag(run_id, mlflow_runs.MIRRORED_TAG, ended)
        return found

    def _sum_up(self, outcomes: Sequence[Outcome]) -> None:
        """The description, and the best trial's numbers, as far as the sweep has come."""
        note = descriptions.of_sweep(self._settings, self._head, len(self._planned), outcomes, self._folder.path)
        self._client.set_tag(self.run_id, mlflow_runs.NOTE_TAG, note)
        best = best_of(outcomes, self._head["mode"])
        if best is not None and best.rounds:
            place = len(outcomes), max(one.ended_ms for one in outcomes)
            metrics = mlflow_runs.metrics(best.last, *place)
            metrics += mlflow_runs.best(best.best.metrics, *place) if best.best else []
            mlflow_runs.log_metrics(self._client, self.run_id, metrics)
            self._client.set_tag(self.run_id, "fedpgp.best_trial", best.planned.label[: mlflow_runs.MAX_LENGTH])

    def _end(self, state: str, outcomes: Sequence[Outcome]) -> None:
        """How the sweep ended, and what it leaves; trials and folds that say that they go on do not."""
        status = dict(self._folder.status)
        if state == "interrupted" and outcomes:
            status["timestamp_ms"] = max(one.ended_ms for one in outcomes)
        self._close_abandoned(status)
        ended = f"{state} {status['timestamp_ms']} {len(outcomes)}"
        if self._client.get_run(self.run_id).data.tags.get(mlflow_runs.MIRRORED_TAG) == ended:
            return
        mlflow_runs.end(self._client, self.run_id, status, state)
        provenance_tags.share(
            self._client, self.run_id, [store.identity for one in outcomes for store in one.runs.values()]
        )
        with artifacts.of_sweep(self._folder, outcomes) as folder:
            self._client.log_artifacts(self.run_id, str(folder))
        self._client.set_tag(self.run_id, mlflow_runs.MIRRORED_TAG, ended)

    def _close_abandoned(self, status: dict[str, Any]) -> None:
        known: dict[str, RunFolder] | None = None
        for trial in mlflow_runs.find(self._client, self._experiment, mlflow_runs.PARENT_TAG, self.run_id):
            for fold in mlflow_runs.find(self._client, self._experiment, mlflow_runs.PARENT_TAG, trial.info.run_id):
                if fold.info.status == "RUNNING":
                    known = known or {store.identity["id"]: store for store in RunFolder.find(self._folder.root)}
                    if (store := known.get(fold.data.tags[RUN_TAG])) is not None:
                        RunWriter(store, self._uri, (trial.info.run_id, self._experiment)).push()
            if trial.info.status == "RUNNING":
                mlflow_runs.end(self._client, trial.info.run_id, status, "interrupted")


def _params(settings: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """The settings of a sweep: those of the base that no trial changes, by their own names; then how it is run."""
    changed = {*settings["space"], *(key for variant in settings["variants"].values() for key in variant)}
    base = {key: value for key, value in mlflow_runs.flat(settings["base"]) if key not in changed}
    variants = {"variants": json.dumps(settings["variants"])} if settings["variants"] else {}
    tune = {**settings["tune"], "metric": head["metric"], "mode": head["mode"]}
    return {**base, **variants, SPACE.rstrip("."): settings["space"], "folds": settings["folds"], "tune": tune}
