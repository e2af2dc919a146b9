"""Update MLflow with all runs and sweeps on disk: first sweeps with their folds, then standalone runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fedpgp import config
from fedpgp.config import Experiment
from fedpgp.core.errors import ConfigError, RunError
from fedpgp.core.text import without_user
from fedpgp.experiments.sweeps import sampling, sweep_settings
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder, TrialRef
from fedpgp.tracking.connection import default_uri
from fedpgp.tracking.mirror import sync_run
from fedpgp.tracking.writers import SweepWriter


def everything(path: Path, uri: str | None = None) -> Iterator[Path]:
    """Mirror a storage root, its `runs`, one run, or one sweep; yields each folder when it is done.

    Args:
        uri: tracking URI; None: the `tracking.uri` of each run.

    Raises:
        RunError: there is no run and no sweep.
    """
    sweeps = SweepFolder.find(path)
    for sweep in sweeps:
        named = (yaml.safe_load(sweep.spec_yaml)["base"].get("tracking") or {}).get("uri")
        target = _uri(uri, named, sweep.root)
        for trial, run_dir in _begun(sweep):
            sync_run(run_dir, target, TrialRef(sweep.path, trial))
        SweepWriter(sweep, target).push()
        yield sweep.path
    if [sweep.path for sweep in sweeps] == [path.absolute()]:
        return
    try:
        stores = RunFolder.find(path)
    except RunError:
        if not sweeps:
            raise
        return  # the sweeps were stopped before their first run
    for store in stores:
        named = yaml.safe_load(store.config_yaml)["tracking"]["uri"]
        sync_run(store.path, _uri(uri, named, store.root))
        yield store.path


def _uri(given: str | None, named: str | None, root: Path) -> str:
    return given or (named and without_user(named)) or default_uri(root)


def _begun(sweep: SweepFolder) -> Iterator[tuple[str, Path]]:
    """Ids of trials that have not ended, with the newest run of each fold, which is found by its settings."""
    open_trials = {trial.id: trial.folds for trial in sweep.trials if sweep.result(trial.id) is None}
    if not open_trials:
        return
    try:
        drawn = sampling.draw(sweep_settings.load(str(sweep.path / "sweep.yaml"))[0]).trials
    except ConfigError:  # written by a version with other settings
        return
    paths = sorted(sweep.root.glob("runs/[!.]*/config.yaml"), key=lambda path: path.stat().st_mtime)
    newest = {_settings_of(path): path.parent for path in paths}
    for trial in drawn:
        for fold in open_trials.get(trial.id, ()):
            if (run_dir := newest.get(_key(trial.fold(fold)))) is not None:
                yield trial.id, run_dir


def _settings_of(path: Path) -> str:
    try:
        return _key(config.parse(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (ConfigError, yaml.YAMLError, OSError):
        return ""


def _key(experiment: Experiment) -> str:
    """The settings that determine the results of a run."""
    tree: dict[str, Any] = experiment.model_dump(mode="json", exclude={"name", "resources", "tracking", "storage"})
    del tree["data"]["root"], tree["backbone"]["weights"]
    return json.dumps(tree, sort_keys=True)
