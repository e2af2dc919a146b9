"""Mirror a sweep: one MLflow run for it, below it one for each trial that has started, below those their folds."""

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
from fedpgp.tracking.mlflow_runs import BEST, DIGEST_TAG, MIRRORED_TAG, NOTE_TAG, Key, Writer
from fedpgp.tracking.run_writer import RUN_TAG, RunWriter
from fedpgp.tracking.trial_summary import Outcome, best_of, outcome

if TYPE_CHECKING:
    from mlflow.entities import Run

SWEEP_TAG = "fedpgp.sweep"
TRIAL_TAG = "fedpgp.trial"
SPACE = "space."
"""Prefix of the parameters that define the search space of a sweep."""


def tag_of(head: Mapping[str, Any]) -> str:
    """The value of `SWEEP_TAG` that identifies a sweep. Two sweeps with the same digest have different values."""
    return f"{head['id']}-{head['created_ms']}"


class SweepWriter(Writer):
    """Writes the MLflow runs of one sweep: its own at once, the others as trials start and end."""

    def __init__(self, folder: SweepFolder, uri: str) -> None:
        self._folder = folder
        self._outcomes: dict[str, Outcome] = {}
        with connection.mlflow_errors(uri):
            self._settings = yaml.safe_load(redacted(folder.spec_yaml))
            self._head, self._planned = folder.head, {trial.id: trial for trial in folder.trials}
            tracking = self._settings["base"].get("tracking") or {}
            experiment = connection.prepare(folder.root, uri, tracking.get("experiment", "fedpgp"))
            super().__init__(folder.path, uri, experiment)
            digest, created_ms = self._head["id"], self._head["created_ms"]
            key = Key(SWEEP_TAG, tag_of(self._head))
            params = _params(self._settings, self._head)
            run = self._find_or_create(key, folder.path.name, created_ms, {DIGEST_TAG: digest}, params)
            if folder.state == "running":
                mlflow_runs.reopen(self._client, run)
            self.run_id = str(run.info.run_id)

    def begin(self, trial: str, created_ms: int) -> tuple[str, str]:
        """Find or create the MLflow run of a trial, one of whose folds has started; returns its id and experiment.

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

    def _push(self) -> None:
        """Send trials that have ended and, once the sweep has ended, its comparison and status."""
        state = self._folder.state  # read first, so that an ended sweep is sent with all its results
        results = self._folder.results()
        for result in results.values():
            if result.id not in self._outcomes or self._outcomes[result.id].result != result:
                self._outcomes[result.id] = self._end_trial(result)
        outcomes = [self._outcomes[trial] for trial in results]
        self._summarize(outcomes)
        if state != "running":
            self._end(state, outcomes)

    def _trial(self, trial: str, created_ms: int) -> Run:
        planned = self._planned[trial]
        key = Key(TRIAL_TAG, trial, self.run_id)
        return self._find_or_create(key, planned.label, created_ms, {DIGEST_TAG: trial}, planned.settings)

    def _end_trial(self, result: Result) -> Outcome:
        """Send a trial with its folds, unless they have been sent."""
        found = outcome(self._folder, self._planned[result.id], result)
        run = self._trial(result.id, found.created_ms)
        run_id = str(run.info.run_id)
        for store in found.runs.values():
            RunWriter(store, self._uri, (run_id, self._experiment)).push()
        mark = f"{result.state} {zlib.crc32(json.dumps(asdict(result)).encode())}"
        if run.data.tags.get(MIRRORED_TAG) == mark:
            return found
        status = {"timestamp_ms": found.ended_ms, "reason": result.reason}
        for store in list(found.runs.values())[:1]:
            settings = yaml.safe_load(redacted(store.config_yaml))
            del settings["seed"], settings["protocol"]["held_out"]
            mlflow_runs.add_params(self._client, self._client.get_run(run_id), settings)
        provenance_tags.share(self._client, run_id, [store.identity for store in found.runs.values()])
        metrics = [metric for row in found.rounds for metric in mlflow_runs.of_row(row)]
        mlflow_runs.log_metrics(self._client, run_id, metrics + mlflow_runs.of_row(found.best, BEST))
        note = descriptions.of_trial(found, self._head["name"])
        folder = artifacts.of_trial(found, self._folder.traceback(result.id), self._head["metric"])
        self._finish(run_id, mark, result.state, status, note, folder)
        return found

    def _summarize(self, outcomes: Sequence[Outcome]) -> None:
        """Update the description and the best trial's numbers."""
        note = descriptions.of_sweep(self._settings, self._head, len(self._planned), outcomes, self._folder.path)
        self._client.set_tag(self.run_id, NOTE_TAG, note)
        best = best_of(outcomes, self._head["mode"])
        if best is not None and best.rounds:
            place = len(outcomes), max(one.ended_ms for one in outcomes)
            metrics = mlflow_runs.metrics(best.last, *place)
            if best.best:
                metrics += mlflow_runs.metrics(
                    {f"{BEST}{name}": value for name, value in best.best.metrics.items()}, *place
                )
            mlflow_runs.log_metrics(self._client, self.run_id, metrics)
            self._client.set_tag(self.run_id, "fedpgp.best_trial", best.planned.label[: mlflow_runs.MAX_LENGTH])

    def _end(self, state: str, outcomes: Sequence[Outcome]) -> None:
        """Send the status and artifacts of an ended sweep, and end its trials and folds that are still RUNNING."""
        status = dict(self._folder.status)
        if state == "interrupted" and outcomes:
            status["timestamp_ms"] = max(one.ended_ms for one in outcomes)
        self._close_abandoned(status)
        mark = f"{state} {status['timestamp_ms']} {len(outcomes)}"
        if self._client.get_run(self.run_id).data.tags.get(MIRRORED_TAG) == mark:
            return
        provenance_tags.share(
            self._client, self.run_id, [store.identity for one in outcomes for store in one.runs.values()]
        )
        self._finish(self.run_id, mark, state, status, None, artifacts.of_sweep(self._folder, outcomes))

    def _close_abandoned(self, status: dict[str, Any]) -> None:
        known: dict[str, RunFolder] | None = None
        for trial in mlflow_runs.find(self._client, self._experiment, mlflow_runs.PARENT_TAG, self.run_id):
            for fold in mlflow_runs.find(self._client, self._experiment, mlflow_runs.PARENT_TAG, trial.info.run_id):
                if fold.info.status == "RUNNING":
                    known = known or {store.identity["id"]: store for store in RunFolder.find(self._folder.root)}
                    if (store := known.get(fold.data.tags[RUN_TAG])) is not None:
                        RunWriter(store, self._uri, (trial.info.run_id, self._experiment)).push()
            if trial.info.status == "RUNNING":
                mlflow_runs.end(self._client, trial.info.run_id, "interrupted", status)


def _params(settings: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a sweep: settings of the base that no trial changes, then space, folds and tune settings."""
    changed = {*settings["space"], *(key for variant in settings["variants"].values() for key in variant)}
    base = {key: value for key, value in mlflow_runs.flat(settings["base"]) if key not in changed}
    variants = {"variants": json.dumps(settings["variants"])} if settings["variants"] else {}
    tune = {**settings["tune"], "metric": head["metric"], "mode": head["mode"]}
    return {**base, **variants, SPACE.rstrip("."): settings["space"], "folds": settings["folds"], "tune": tune}
