"""Mirror runs (settings, each round, then artifacts and status) and sweeps (below them trials, below those folds)."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.config.tracking_uri import DEFAULT_EXPERIMENT
from fedpgp.config.values import load_yaml
from fedpgp.core import provenance
from fedpgp.core.errors import RunError
from fedpgp.core.files import locked
from fedpgp.core.text import redacted
from fedpgp.federation.measures import split_name
from fedpgp.federation.metrics import RoundRow, last_evaluated
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, Result, SweepFolder, TrialRef, TrialSpec
from fedpgp.tracking import artifacts, connection, descriptions, mlflow_runs
from fedpgp.tracking.descriptions import Outcome
from fedpgp.tracking.mlflow_runs import (
    BEST,
    DIGEST_TAG,
    MIRRORED_TAG,
    NOTE_TAG,
    TRIAL_TAG,
    Writer,
)
from fedpgp.tracking.names import PARENT_TAG, RUN_TAG, SEARCHED_TAG, SWEEP_TAG

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

STRETCHES_TAG = "fedpgp.stretches"
"""The tag that says which rounds were made with which versions and hardware, if they are not the same for all."""
LAST_ROUND = "round"
"""The metric whose latest value is the last mirrored round. It is sent after the round's others."""
SPACE = "space."
"""Prefix of the parameters that define the search space of a sweep."""
SYSTEM = "system/"
"""Prefix of the metrics that MLflow shows on the tab `System metrics` of a run."""


class RunWriter(Writer):
    """Writes the MLflow runs of one run: one at the top level, or one below each trial of which it is a fold.

    Args:
        parent: ids of the MLflow run of a trial and of its experiment; None: all existing MLflow runs of this run are
            updated, and one is created at the top level if it has none.
        name: of the fold, with a parent.
    """

    def __init__(self, store: RunFolder, uri: str, parent: tuple[str, str] | None = None, name: str = "") -> None:
        self._store, self._name = store, name or store.path.name
        with connection.mlflow_errors(uri):
            self._config = redacted(store.config_yaml)
            self._settings = load_yaml(self._config)
            name = connection.experiment_name(uri, self._settings["tracking"]["experiment"])
            trial, experiment = parent or (None, connection.prepare(store.root, uri, name))
            super().__init__(store.path, uri, experiment)
            runs = mlflow_runs.find(self._client, experiment, RUN_TAG, store.identity["id"])
            own = runs[0] if runs and trial is None else self._own(trial)
            self.run_id = str(own.info.run_id)
            if store.state == "running":
                for run in {run.info.run_id: run for run in (*runs, own)}.values():
                    mlflow_runs.reopen(self._client, run)
            self._sent = {run.info.run_id: int(run.data.metrics.get(LAST_ROUND, -1)) for run in (*runs, own)}

    def _own(self, trial: str | None) -> Run:
        """Find or create the MLflow run below that of a trial, or at the top level."""
        identity, settings = self._store.identity, self._settings
        tags = {**mlflow_runs.tags_of(identity), NOTE_TAG: descriptions.of_run(self._store, settings)}
        tags |= {RUN_TAG: identity["id"], **({PARENT_TAG: trial} if trial else {})}
        found = self._find_or_create(RUN_TAG, tags, self._name, identity["created_ms"], settings)
        mlflow_runs.add_data(self._client, found, [identity])
        return found

    def _push(self) -> None:
        """Send new rounds and, once the run has ended, its artifacts and status."""
        state = self._store.state  # read first, so that an ended run is sent with all its rows
        rows = self._store.rounds(after=min(self._sent.values()))
        for run_id, last in self._sent.items():
            new = [row for row in rows if row.round > last]
            mlflow_runs.log_metrics(self._client, run_id, [metric for row in new for metric in _metrics(row)])
            self._sent[run_id] = max([last, *(row.round for row in new)])
            if state != "running":
                self._end(run_id, state)

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
            if made := provenance.by_rounds(store.stretches, rows[-1].round if rows else 0):
                self._client.set_tag(run_id, STRETCHES_TAG, "; ".join(made)[: mlflow_runs.MAX_LENGTH])
            note = descriptions.of_run(store, self._settings)
            self._finish(run_id, mark, state, status, note, partial(artifacts.of_run, store, self._config))


class SweepWriter(Writer):
    """Writes the MLflow runs of one sweep: its own at once, the others as trials start and end."""

    def __init__(self, folder: SweepFolder, uri: str) -> None:
        self._folder = folder
        self._outcomes: dict[str, Outcome] = {}
        with connection.mlflow_errors(uri):
            self._settings = load_yaml(redacted(folder.spec_yaml))
            self._head, self._objectives = folder.head, folder.objectives
            tracking = self._settings["base"].get("tracking") or {}
            given = tracking.get("experiment", DEFAULT_EXPERIMENT)  # earlier code left out the default
            name = connection.experiment_name(uri, given)
            experiment = connection.prepare(folder.root, uri, name)
            super().__init__(folder.path, uri, experiment)
            tags = {SWEEP_TAG: sweep_tag(self._head), DIGEST_TAG: self._head["id"]}
            params = _params(self._settings, self._head)
            run = self._find_or_create(SWEEP_TAG, tags, folder.path.name, self._head["created_ms"], params)
            if folder.state == "running":
                mlflow_runs.reopen(self._client, run)
            self.run_id = str(run.info.run_id)

    def begin(self, trial: str, created_ms: int) -> tuple[str, str]:
        """Find or create the MLflow run of a trial, one of whose folds has started; returns its id and experiment."""
        self._spec(trial)
        with connection.mlflow_errors(self._uri):
            run = self._trial(trial, created_ms)
            if self._folder.result(trial) is None and self._folder.state == "running":
                mlflow_runs.reopen(self._client, run)
        return str(run.info.run_id), self._experiment

    def fold_name(self, trial: str, settings: Mapping[str, Any]) -> str:
        """The name of the fold of a trial that has these settings."""
        split = any(fold.split is not None for fold in self._spec(trial).folds)
        number = _with_splits(settings)[0]["split_seed"] if split else None
        return str(Fold(settings["seed"], settings["protocol"]["held_out"], number))

    def _push(self) -> None:
        """Send trials that have ended and, once the sweep has ended, its comparison and status."""
        state = self._folder.state  # read first, so that an ended sweep is sent with all its results
        results = self._folder.results()
        for result in results.values():
            if result.id not in self._outcomes or self._outcomes[result.id].result != result:
                self._outcomes[result.id] = self._end_trial(result)
        outcomes = [self._outcomes[trial] for trial in results]
        self._summarize(outcomes)
        note = descriptions.of_sweep(self._settings, self._head, self._folder.planned, outcomes, self._folder.path)
        if state == "running":
            self._client.set_tag(self.run_id, NOTE_TAG, note)
        else:
            self._end(state, outcomes, note)

    def _spec(self, trial: str) -> TrialSpec:
        """A trial of the sweep, which may be younger than this writer."""
        found = next((one for one in self._folder.trials if one.id == trial), None)
        if found is None:
            raise RunError(f"{self._folder.path}: has no trial {trial}")
        return found

    def _trial(self, trial: str, created_ms: int) -> Run:
        planned = self._spec(trial)
        tags = {TRIAL_TAG: trial, PARENT_TAG: self.run_id, DIGEST_TAG: trial}
        return self._find_or_create(TRIAL_TAG, tags, planned.label, created_ms, planned.settings)

    def _end_trial(self, result: Result) -> Outcome:
        """Send a trial with its folds, unless they have been sent."""
        found = Outcome.read(self._folder, self._spec(result.id), result)
        run = self._trial(result.id, found.created_ms)
        run_id = str(run.info.run_id)
        for fold, store in found.runs.items():
            RunWriter(store, self._uri, (run_id, self._experiment), fold).push()
        mark = f"{result.state} {zlib.crc32(json.dumps(asdict(result)).encode())}"
        if run.data.tags.get(MIRRORED_TAG) == mark:
            return found
        for store in list(found.runs.values())[:1]:
            settings = load_yaml(redacted(store.config_yaml))
            del settings["seed"], settings["protocol"]["held_out"]
            if any(fold.split is not None for fold in result.folds):
                for part in _with_splits(settings):
                    del part["split_seed"]
            mlflow_runs.add_params(self._client, self._client.get_run(run_id), settings)
        mlflow_runs.share(self._client, run_id, [store.identity for store in found.runs.values()])
        last = last_evaluated(found.rounds)
        rows = [row if row.round == last else _without_domains(row) for row in found.rounds]  # folds have every round's
        metrics = [metric for row in rows for metric in mlflow_runs.of_row(row)]
        mlflow_runs.log_metrics(self._client, run_id, metrics + mlflow_runs.of_row(found.best, BEST))
        status = {"timestamp_ms": found.ended_ms, "reason": result.reason}
        note = descriptions.of_trial(found, self._head["name"])
        write = partial(artifacts.of_trial, found, self._folder.traceback(result.id), self._objectives)
        self._finish(run_id, mark, result.state, status, note, write)
        return found

    def _summarize(self, outcomes: Sequence[Outcome]) -> None:
        """Update the best trial's numbers, and the list of the settings that trials differ by."""
        keys = dict.fromkeys(key for trial in self._folder.trials for key in mlflow_runs.flat(trial.settings))
        self._client.set_tag(self.run_id, SEARCHED_TAG, json.dumps(list(keys)))
        best = descriptions.best_of(outcomes, self._objectives.mode)
        if best is not None and best.rounds:
            place = len(outcomes), max(one.ended_ms for one in outcomes)
            metrics = mlflow_runs.metrics(best.last, *place)
            metrics += mlflow_runs.metrics(best.best.metrics, *place, BEST) if best.best else []
            mlflow_runs.log_metrics(self._client, self.run_id, metrics)
            self._client.set_tag(self.run_id, "fedpgp.best_trial", best.planned.label[: mlflow_runs.MAX_LENGTH])

    def _end(self, state: str, outcomes: Sequence[Outcome], note: str) -> None:
        """Send status, description and artifacts of an ended sweep, and end trials and folds still RUNNING."""
        status = dict(self._folder.status)
        if state == "interrupted" and outcomes:
            status["timestamp_ms"] = max(one.ended_ms for one in outcomes)
        self._close_abandoned(status)
        mark = f"{state} {status['timestamp_ms']} {len(outcomes)}"
        if self._client.get_run(self.run_id).data.tags.get(MIRRORED_TAG) == mark:
            return
        identities = [store.identity for one in outcomes for store in one.runs.values()]
        mlflow_runs.share(self._client, self.run_id, identities)
        write = partial(artifacts.of_sweep, self._folder, outcomes)
        self._finish(self.run_id, mark, state, status, note, write)

    def _close_abandoned(self, status: dict[str, Any]) -> None:
        known: dict[str, RunFolder] | None = None
        for trial in mlflow_runs.find(self._client, self._experiment, PARENT_TAG, self.run_id):
            for fold in mlflow_runs.find(self._client, self._experiment, PARENT_TAG, trial.info.run_id):
                if fold.info.status == "RUNNING":
                    known = known or {store.identity["id"]: store for store in RunFolder.find(self._folder.root)}
                    if (store := known.get(fold.data.tags[RUN_TAG])) is not None:
                        name = str(fold.info.run_name)
                        RunWriter(store, self._uri, (trial.info.run_id, self._experiment), name).push()
            if trial.info.status == "RUNNING":
                mlflow_runs.end(self._client, trial.info.run_id, "interrupted", status)


def run_writer(run_dir: Path, uri: str, parent: TrialRef | None) -> RunWriter:
    """The writer of a run, which may be a fold of a trial."""
    store = RunFolder.open(run_dir)
    if parent is None:
        return RunWriter(store, uri)
    sweep = SweepWriter(SweepFolder.open(parent.sweep), uri)
    ids = sweep.begin(parent.trial, store.identity["created_ms"])
    return RunWriter(store, uri, ids, sweep.fold_name(parent.trial, load_yaml(store.config_yaml)))


def _with_splits(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of each data set of a run."""
    return settings["data"].get("parts") or [settings["data"]]


def sweep_tag(head: Mapping[str, Any]) -> str:
    """The value of `SWEEP_TAG` that identifies a sweep. Two sweeps with the same digest have different values."""
    return f"{head['id']}-{head['created_ms']}"


def _metrics(row: RoundRow) -> list[Metric]:
    """All numbers of a round, with times, bytes, usage of the machine and its number."""
    more = {f"seconds/{stage}": value for stage, value in row.seconds.items()}
    more |= {f"{SYSTEM}{name}": value for name, value in row.system.items()}
    more |= {"participants": row.participants, "bytes/up": row.bytes_up, "bytes/down": row.bytes_down}
    return mlflow_runs.metrics({**row.metrics, **more, LAST_ROUND: row.round}, row.round, row.timestamp_ms)


def _without_domains(row: RoundRow) -> RoundRow:
    """A round without the accuracies of single domains, which are many."""
    return replace(row, metrics={name: value for name, value in row.metrics.items() if split_name(name)[2] is None})


def _params(settings: dict[str, Any], head: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a sweep: settings of the base that no trial changes, then space, folds and tune settings."""
    changed = {*settings["space"], *(key for variant in settings["variants"].values() for key in variant)}
    base = {key: value for key, value in mlflow_runs.flat(settings["base"]).items() if key not in changed}
    variants = {"variants": json.dumps(settings["variants"])} if settings["variants"] else {}
    objectives = Objectives.of_head(head)
    tune = {**settings["tune"], "metric": ", ".join(objectives.metrics), "mode": objectives.mode}
    return {**base, **variants, SPACE.rstrip("."): settings["space"], "folds": settings["folds"], "tune": tune}
