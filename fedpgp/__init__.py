"""Federated prompt learning on frozen CLIP models: FedPGP and its baselines, comparable and at cluster scale.

The public Python API; each command of `fedpgp` is a thin layer over it.

    import fedpgp

    run = fedpgp.run("icons", "method.rank=4", "federation.rounds=10")
    run.rounds                                     # one row per round, a pandas DataFrame
    run.prompt(client=3).predict(["photo.png"])
    sweep = fedpgp.sweep("rank_mu_tau_shots", "tune.max_concurrent=4", resume=True)
    fedpgp.compare(fedpgp.load("fedpgp-store"), baseline="promptfl")

Everything is read from the folders of runs and sweeps; nothing here keeps state between calls. Importing this module
loads none of the heavy libraries. Invalid input raises a subclass of `fedpgp.core.errors.UserError` before work starts.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from fedpgp.config import Experiment
    from fedpgp.core.callbacks import RunCallback
    from fedpgp.experiments.sweeps.sweep_settings import Sweep as SweepSettings
    from fedpgp.export.prompt_file import Prompt
    from fedpgp.export.results import Run, Sweep, compare

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "Prompt",
    "Run",
    "RunCallback",
    "Sweep",
    "compare",
    "load",
    "lodo",
    "predict",
    "report",
    "run",
    "sweep",
]

LAZY = {
    "Experiment": "fedpgp.config",
    "Prompt": "fedpgp.export.prompt_file",
    "Run": "fedpgp.export.results",
    "RunCallback": "fedpgp.core.callbacks",
    "Sweep": "fedpgp.export.results",
    "compare": "fedpgp.export.results",
}
"""Public names that are imported at first use, and where they are defined."""


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module 'fedpgp' has no attribute {name!r}")


def run(
    config: str | Path | Mapping[str, Any] | Experiment,
    *overrides: str,
    resume: bool = False,
    progress: bool | RunCallback = True,
) -> Run:
    """Run one federated experiment and wait for it.

    Args:
        config: a YAML file, the name of a shipped experiment (`icons`, `shapes`), a mapping of settings, or settings.
        overrides: settings to change, such as `"method.rank=4"`.
        resume: continue the newest run of exactly these settings; refused if an unfinished one has others.
        progress: show progress on stderr or in the notebook; or a callback that receives it.

    Returns:
        The finished run. If it was interrupted (Ctrl-C, a stopped kernel), its rounds are kept and `resume` continues.

    Raises:
        UserError: the settings, data or weights cannot be used; nothing was started.
        Interrupted: the run was asked to stop.
        FedPGPError: the run failed; the rounds before are kept.
    """
    from fedpgp.experiments import launch
    from fedpgp.export.results import Run
    from fedpgp.tracking import MLflowTracker

    settings = _experiment(config, overrides)
    _authenticate(settings.resources.address)
    with _callback(progress) as callback:
        return Run(launch.run(settings, resume, callback, MLflowTracker()))


def sweep(
    config: str | Path | Mapping[str, Any] | SweepSettings,
    *overrides: str,
    resume: bool = False,
    rerun: Literal["failed", "all"] | None = None,
    progress: bool | RunCallback = True,
) -> Sweep:
    """Run the trials of a sweep, each once in the life of a storage root, and wait for them.

    Args:
        config: a YAML file, the name of a shipped sweep or experiment, or a mapping of settings.
        overrides: settings to change; an overridden setting is no longer searched.
        resume: if the sweep exists, run the trials that are missing or were interrupted.
        rerun: `failed`: as `resume`, and failed trials again; `all`: every trial from its first round.

    Returns:
        The sweep. A trial that fails does not end the others; see `trials`.

    Raises:
        UserError: a trial cannot be run, or the sweep exists, trials are left, and `resume` and `rerun` are not given.
        Interrupted: stopped by a signal; finished trials and committed rounds are kept.
    """
    return _sweep(config, overrides, False, resume, rerun, progress)


def lodo(
    config: str | Path | Mapping[str, Any] | SweepSettings,
    *overrides: str,
    resume: bool = True,
    rerun: Literal["failed", "all"] | None = None,
    progress: bool | RunCallback = True,
) -> Sweep:
    """Leave one domain out: run every trial once per domain, with that domain held out. Arguments as of `sweep`."""
    return _sweep(config, overrides, True, resume, rerun, progress)


def load(path: str | Path = "fedpgp-store") -> list[Run]:
    """All runs of a storage root or of a sweep, or the one run in this folder. Nothing of them is executed.

    Args:
        path: a folder, or its URI (`s3://BUCKET/FOLDER`): what changed there is copied to this machine first.

    Raises:
        RunError: there is no run.
    """
    from fedpgp.export.results import Run, Sweep
    from fedpgp.storage import copies
    from fedpgp.storage.run_folder import RunFolder

    place = copies.local(path)
    if (place / "trials.json").is_file():
        return Sweep(place).runs()
    return [Run(folder.path) for folder in RunFolder.find(place)]


def report(
    runs: Run | Sweep | str | Path | Iterable[Run | Sweep | str | Path],
    out: str | Path | None = None,
    format: Literal["html", "md", "csv"] = "html",
    baseline: str | None = None,
    allow_mismatch: bool = False,
) -> Path | str:
    """Write a report on runs: tables, differences, figures, settings, costs.

    Args:
        runs: as of `compare`.
        out: folder for the report and its figures (PNG and SVG); None: return the text instead.
        format: html is one file that needs no others.
        baseline: as of `compare`.
        allow_mismatch: as of `compare`.

    Returns:
        The file, or the text.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import writing

    folder = None if out is None else Path(out)
    return writing.write(loading.paths_of(runs), format, folder, baseline, allow_mismatch)


def predict(
    prompt: str | Path | Prompt,
    images: Iterable[str | Path | Image],
    classes: Sequence[str] | None = None,
    weights: str | None = None,
    top: int = 5,
) -> pd.DataFrame:
    """Classify images with a learned prompt. See `Prompt.predict`.

    Args:
        prompt: a file that `fedpgp export` wrote, or a prompt.
        weights: checkpoint file of the backbone, if it has one.
    """
    from fedpgp.export.prompt_file import Prompt

    return (prompt if isinstance(prompt, Prompt) else Prompt.load(prompt, weights)).predict(images, classes, top)


def _experiment(config: str | Path | Mapping[str, Any] | Experiment, overrides: Sequence[str]) -> Experiment:
    from fedpgp import config as configs

    if isinstance(config, str | Path):
        return configs.load(str(config), overrides, _carry)
    tree = dict(config) if isinstance(config, Mapping) else config.model_dump(mode="json")
    return configs.parse(configs.override(tree, overrides, "settings", _carry), source="settings")


def _carry(old: str, new: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    from fedpgp.methods import carry

    return carry(old, new, given)


def _sweep(
    config: str | Path | Mapping[str, Any] | SweepSettings,
    overrides: Sequence[str],
    one_domain_out: bool,
    resume: bool,
    rerun: Literal["failed", "all"] | None,
    progress: bool | RunCallback,
) -> Sweep:
    from fedpgp.experiments.sweeps import sweep_settings
    from fedpgp.export.results import Sweep
    from fedpgp.federation.backends import check_variables
    from fedpgp.tracking import MLflowTracker

    with _callback(progress) as callback:
        if isinstance(config, sweep_settings.Sweep):
            settings, notes = config, list[str]()
        else:
            settings, notes = sweep_settings.load(config if isinstance(config, Mapping) else str(config), overrides)
        if one_domain_out:
            settings = sweep_settings.leave_one_domain_out(settings)
        for note in notes:
            callback.on_message(note)
        check_variables()
        _authenticate(settings.base.get("resources", {}).get("address"))
        from fedpgp.experiments.sweeps import sweep_runner  # imports Ray

        return Sweep(
            sweep_runner.run(settings, rerun or ("missing" if resume else None), callback, MLflowTracker()).path
        )


def _authenticate(address: str | None) -> None:
    """Send the token of a cluster that is already running; decided before Ray is imported."""
    from fedpgp.federation.backends import use_token

    if address or os.environ.get("RAY_ADDRESS"):
        use_token()


@contextmanager
def _callback(progress: bool | RunCallback) -> Iterator[RunCallback]:
    from fedpgp.core.callbacks import RunCallback

    if isinstance(progress, RunCallback):
        yield progress
    elif not progress:
        yield RunCallback()
    else:
        from rich.console import Console

        from fedpgp.analysis.report.progress_bar import ProgressDisplay

        with ProgressDisplay(Console(stderr=True)) as display:
            yield display
