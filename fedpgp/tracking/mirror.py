"""Mirror runs and sweeps to MLflow: once, on request, or from a thread while they are going on."""

import json
import logging
import os
import shlex
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fedpgp import config
from fedpgp.config import Experiment, tracking_uri
from fedpgp.config.values import load_yaml
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import AccessError, ConfigError, FedPGPError, Interrupted, RunError, UserError
from fedpgp.core.files import denied, folders_with
from fedpgp.core.text import redacted, without_user
from fedpgp.experiments.sweeps import sampling, sweep_settings
from fedpgp.experiments.sweeps.sampling import Trial
from fedpgp.experiments.sweeps.sweep_settings import Sweep
from fedpgp.experiments.tracker import Tracker
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder, TrialRef
from fedpgp.tracking import connection
from fedpgp.tracking.connection import default_uri
from fedpgp.tracking.mlflow_runs import Writer
from fedpgp.tracking.names import RUN_TAG, SWEEP_TAG
from fedpgp.tracking.uri_check import check_settings, check_uri
from fedpgp.tracking.writers import SweepWriter, run_writer

log = logging.getLogger("fedpgp.tracking")

RUN_VARIABLE = "MLFLOW_RUN_ID"
"""Environment variable with which other programs write into an existing MLflow run."""
PENDING = 2
"""Mirrors of finished runs that may still be sending while the next run is under way."""


def sync_run(run_dir: Path, uri: str, parent: TrialRef | None = None) -> str:
    """Send what is new of a run to MLflow; return the id of its MLflow run, which is created if it is missing.

    `parent` is the trial that the run is a fold of; without one, a new MLflow run is created at the top level. Raises
    `RunError` if `run_dir` is not a run folder, and `FedPGPError` if MLflow cannot be reached or returns an error.
    """
    writer = run_writer(run_dir, uri, parent)
    writer.push()
    return writer.run_id


def sync_all(path: Path, uri: str | None = None) -> Iterator[Path]:
    """Mirror a storage root, its `runs`, one run, or one sweep to `uri`, by default to the store that each names.

    Yields each folder when it is done. Raises `RunError` if there is no run and no sweep, `ConfigError` if MLflow can
    never open `uri`, and at the end `RunError` if folders were left out because their own store cannot be found again.
    """
    if uri is not None:
        uri = tracking_uri.absolute_uri(uri)
        check_uri(uri, "--uri", "--uri ")
    left_out: list[str] = []
    for folder in _folders(path):
        try:
            target = uri or checked_store(folder)
        except UserError as error:
            left_out.append(str(error))
            continue
        if isinstance(folder, SweepFolder):
            for trial, run_dir in _begun(folder):
                sync_run(run_dir, target, TrialRef(folder.path, trial))
            SweepWriter(folder, target).push()
        else:
            sync_run(folder.path, target)
        yield folder.path
    if left_out:
        raise RunError(left_out[0] + (f" (so are {len(left_out) - 1} more folders)" if len(left_out) > 1 else ""))


def _folders(path: Path) -> Iterator[SweepFolder | RunFolder]:
    """The sweep in this folder, or all sweeps and then all runs of this storage root."""
    sweeps = SweepFolder.find(path)
    yield from sweeps
    if [sweep.path for sweep in sweeps] == [path.absolute()]:
        return
    try:
        yield from RunFolder.find(path)
    except RunError as error:
        if not sweeps or isinstance(error, AccessError):
            raise  # otherwise the sweeps were stopped before their first run


def _named_store(folder: SweepFolder | RunFolder) -> str | None:
    """The `tracking.uri` in the settings of a run or a sweep, without credentials."""
    settings = load_yaml(folder.config_yaml if isinstance(folder, RunFolder) else folder.spec_yaml)
    tracking = (settings if isinstance(folder, RunFolder) else settings["base"]).get("tracking") or {}
    return without_user(tracking["uri"]) if tracking.get("uri") else None


def _store(folder: SweepFolder | RunFolder) -> str:
    """The store that a run or a sweep names, else that of the environment, else that of its storage root."""
    return tracking_uri.uri_of(_named_store(folder)) or default_uri(folder.root)


def checked_store(folder: SweepFolder | RunFolder) -> str:
    """As `_store`; raise `UserError` if it cannot be found from here, or never be opened."""
    named, uri = _named_store(folder), _store(folder)
    check_uri(named or uri, f"{folder.path}: tracking.uri" if named else tracking_uri.URI_VARIABLE, "--uri ")
    if named is not None and tracking_uri.is_relative(named):
        raise RunError(
            f"{folder.path}: tracking.uri: {named} is relative to the folder in which this was started, which is not "
            "recorded; give the store with its absolute path: --uri sqlite:////FOLDER/FILE"
        )
    return uri


def stale_runs(uri: str, ended: Set[str]) -> list[str]:
    """Names of MLflow runs that are RUNNING although their run or sweep has ended, because its process was killed.

    Args:
        ended: values of `RUN_TAG` and `SWEEP_TAG` of the runs and sweeps that have ended.
    """
    with connection.mlflow_errors(uri):
        client = connection.connect(uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
        return [
            str(run.info.run_name)
            for run in running
            if {run.data.tags.get(RUN_TAG), run.data.tags.get(SWEEP_TAG)} & ended
        ]


def experiment_deleted(uri: str, experiment: str) -> bool:
    """Whether the experiment was deleted in MLflow, and can be restored."""
    with connection.mlflow_errors(uri):
        found = connection.connect(uri).get_experiment_by_name(experiment)
        return found is not None and connection.is_deleted(found)


class Mirror:
    """Mirrors a run or sweep from a background thread while it is going on.

    If MLflow fails, it logs one warning and tries again at every later `notify`. For a fold, a run with a `parent`, it
    logs nothing: the mirror of its sweep does, and updates the fold when its trial ends.
    """

    def __init__(self, folder: Path, uri: str, parent: TrialRef | None = None) -> None:
        self._folder, self._uri, self._parent = folder.absolute(), uri, parent
        self._writer: Writer | None = None
        self._wake, self._closing, self._warned = threading.Event(), False, parent is not None
        self._thread = threading.Thread(target=self._loop, name="mlflow mirror", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Send new rows. Returns at once."""
        self._wake.set()

    def finish(self) -> None:
        """Send what is left, including the final status, and stop. Returns at once."""
        self._closing = True
        self._wake.set()

    def close(self, timeout: float = 60.0) -> None:
        """Finish, and wait for it for at most `timeout` seconds."""
        self.finish()
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
                self._writer = self._writer or self._open()
                self._writer.push()
            except FedPGPError as error:
                self._writer = None
                self._warn(str(error))

    def _open(self) -> Writer:
        if (self._folder / "trials.json").is_file():
            return SweepWriter(SweepFolder.open(self._folder), self._uri)
        return run_writer(self._folder, self._uri, self._parent)

    def _warn(self, what: str) -> None:
        if not self._warned:
            log.warning("%s; the run goes on; once this is solved, `%s` catches up", what, self.sync_command())
        self._warned = True

    def sync_command(self) -> str:
        """The command that sends all that is missing, also if the folder itself does not lead to this store."""
        command = f"fedpgp track sync {shlex.quote(str(self._folder))}"
        with suppress(OSError):  # the folder may be gone, or may not be entered
            kind = SweepFolder if (self._folder / SweepFolder.marker).is_file() else RunFolder
            if _store(kind(self._folder)) != self._uri:
                return f"{command} --uri {shlex.quote(redacted(self._uri))}"
        return command


class MLflowTracker(Tracker):
    """Mirrors run and sweep folders to MLflow, unless `tracking.mlflow` is false."""

    def __init__(self) -> None:
        self._ending: deque[Mirror] = deque()
        self._environment = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Use the variables of MLflow, such as the password, also in the process that this is sent to."""
        vars(self).update(state)
        for name, value in self._environment.items():
            os.environ.setdefault(name, value)

    def settled(self, experiment: Experiment) -> Experiment:
        """Fill in the name of an experiment whose number is in the environment.

        Raises `ConfigError` if MLflow can never open the store, or the store has no experiment of that number, and
        `FedPGPError` if it cannot be asked for its name.
        """
        tracking = experiment.tracking
        check_settings(tracking)
        if not tracking.mlflow or tracking_uri.experiment_id(tracking.experiment) is None:
            return experiment
        uri = tracking_uri.uri_of(tracking.uri) or default_uri(experiment.storage.root.expanduser())
        name = connection.experiment_name(uri, tracking.experiment)
        return experiment.model_copy(update={"tracking": tracking.model_copy(update={"experiment": name})})

    def load(self, experiment: Experiment) -> None:
        """Import MLflow; an error is that of the first attempt to connect."""
        if experiment.tracking.mlflow:
            with suppress(Exception):
                import mlflow.tracking  # noqa: F401

    def run(self, experiment: Experiment, trial: TrialRef | None = None) -> RunCallback:
        """Mirror the run from the moment its folder exists."""
        return _Following(experiment, trial, self._end) if experiment.tracking.mlflow else RunCallback()

    def sweep(self, folder: Path, experiment: Experiment) -> RunCallback:
        """Mirror the sweep and its trials; their folds are mirrored where they run."""
        if not experiment.tracking.mlflow:
            return RunCallback()
        following = _Following(experiment, None, self._end)
        following.on_begin(str(folder), 0, 0)
        return following

    def close(self) -> None:
        """Wait until all mirrors have sent what is left; at most a minute each.

        Raises `Interrupted` after Ctrl-C, with the command that sends the rest.
        """
        while self._ending:
            mirror = self._ending.popleft()
            try:
                mirror.close()
            except KeyboardInterrupt:
                what = f"interrupted while sending to MLflow; `{mirror.sync_command()}` sends the rest"
                raise Interrupted(what) from None

    def _end(self, mirror: Mirror) -> None:
        mirror.finish()
        self._ending.append(mirror)
        if len(self._ending) > PENDING:
            self._ending.popleft().close()


class _Following(RunCallback):
    """Mirrors the run or sweep that begins, and notifies the mirror of new rows and results."""

    def __init__(self, experiment: Experiment, parent: TrialRef | None, end: Callable[[Mirror], None]) -> None:
        self._uri = experiment.tracking.uri or default_uri(experiment.storage.root)
        self._parent, self._end = parent, end
        self._mirror: Mirror | None = None
        self._ended_trials = -1

    def on_begin(self, folder: str, done: int, total: int) -> None:
        """Start mirroring."""
        if self._mirror is None and self._parent is None and os.environ.get(RUN_VARIABLE):
            log.warning("%s is not used: every run and sweep has an MLflow run of its own", RUN_VARIABLE)
        self._mirror = self._mirror or Mirror(Path(folder), self._uri, self._parent)
        self._notify()

    def on_round(self, folder: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """There is a new row."""
        self._notify()

    def on_trials(self, ended: int, total: int, summary: str) -> None:
        """A trial may have ended."""
        if ended != self._ended_trials:
            self._ended_trials = ended
            self._notify()

    def on_end(self, folder: str, state: str) -> None:
        """Send what is left, without waiting for it."""
        if self._mirror is not None:
            self._end(self._mirror)
            self._mirror = None

    def _notify(self) -> None:
        if self._mirror is not None:
            self._mirror.notify()


def _begun(sweep: SweepFolder) -> Iterator[tuple[str, Path]]:
    """Ids of trials that have not ended, with the newest run of each fold, which is found by its settings."""
    open_trials = {trial.id: trial.folds for trial in sweep.trials if sweep.result(trial.id) is None}
    if not open_trials:
        return
    try:
        settings, _ = sweep_settings.load(str(sweep.path / "sweep.yaml"))
        drawn = _suggested(sweep, settings) if settings.tune.adaptive else sampling.draw(settings).trials
    except ConfigError:  # written by a version with other settings
        return
    folders = [path for path in folders_with("config.yaml", sweep.root / "runs") if not path.name.startswith(".")]
    paths = [path / "config.yaml" for path in folders if denied(path / "config.yaml") is None]
    paths.sort(key=lambda path: path.stat().st_mtime)
    newest = {_settings_of(path): path.parent for path in paths}
    for trial in drawn:
        for fold in open_trials.get(trial.id, ()):
            if (run_dir := newest.get(_key(trial.fold(fold)))) is not None:
                yield trial.id, run_dir


def _suggested(sweep: SweepFolder, settings: Sweep) -> Sequence[Trial]:
    """The trials of an adaptive search, each once, without invalid ones."""
    found: dict[str, Trial] = {}
    for one in sweep.suggestions:
        with suppress(ConfigError):
            found.setdefault(one.trial, sampling.suggested(settings, "", one.variant, one.point))
    return list(found.values())


def _settings_of(path: Path) -> str:
    try:
        return _key(config.parse(load_yaml(path.read_text(encoding="utf-8"))))
    except (ConfigError, yaml.YAMLError, OSError):
        return ""


def _key(experiment: Experiment) -> str:
    """The settings that determine the results of a run."""
    tree: dict[str, Any] = experiment.model_dump(mode="json", exclude={"name", "resources", "tracking", "storage"})
    del tree["data"]["root"], tree["backbone"]["weights"]
    return json.dumps(tree, sort_keys=True)
