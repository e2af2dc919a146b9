"""The commands that run many experiments as one: `fedpgp sweep`, `fedpgp lodo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from fedpgp.core.errors import FedPGPError
from fedpgp.federation.backends.authentication import use_token

if TYPE_CHECKING:
    from fedpgp.experiments.sweeps.sweep_settings import Sweep
    from fedpgp.storage.sweep_folder import SweepFolder

out = Console()
err = Console(stderr=True)

SweepArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file of a sweep or an experiment, or a shipped one by its name.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[a.b=value ...]",
        help="Settings to change: of the base (base.method.rank=4 or method.rank=4), or folds.seeds=[1], "
        "tune.max_concurrent=2. What the space says of that key is replaced.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Draw and check all trials, estimate time and bytes, start nothing.")
]


ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on after a crash: trials that failed or are missing, and no other.")
]
RerunOption = Annotated[
    Literal["failed", "all"] | None,
    typer.Option("--rerun", help="Run again: those that failed, or all from the start."),
]


def sweep(
    config: SweepArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    rerun: RerunOption = None,
) -> None:
    """Run many trials of one experiment, and rank them.

    All trials are drawn and checked before the first starts. What has finished, in this sweep or another, is never run
    again. Ctrl-C stops the trials that are going on; `--resume` goes on from there.
    """
    from fedpgp.analysis.report.sweep_tables import ranking
    from fedpgp.experiments.sweeps import sweep_settings

    settings, said = sweep_settings.load(config, overrides or [])
    _say(said)
    if dry_run:
        preview(settings)
        return
    folder = execute(settings, resume, rerun)
    out.print(ranking(folder))
    typer.echo(f"sweep: {folder.path}")
    _refuse_failed(folder)


def lodo(
    config: SweepArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    rerun: RerunOption = None,
) -> None:
    """Leave one domain out: hold each domain out in turn, and test every client's model on it.

    CONFIG is an experiment, or a sweep whose every trial is run so.
    """
    from fedpgp.analysis.report.sweep_tables import held_out
    from fedpgp.experiments.sweeps import sweep_settings

    settings, said = sweep_settings.load(config, overrides or [])
    settings = sweep_settings.leave_one_domain_out(settings)
    _say(said)
    if dry_run:
        preview(settings)
        return
    folder = execute(settings, resume, rerun)
    out.print(held_out(folder))
    typer.echo(f"sweep: {folder.path}")
    _refuse_failed(folder)


def run(config: str, overrides: list[str] | None) -> SweepFolder:
    """Run a sweep with progress, and nothing printed at its end; every trial of it must finish.

    Raises:
        FedPGPError: a trial failed.
    """
    from fedpgp.experiments.sweeps import sweep_settings

    settings, said = sweep_settings.load(config, overrides or [])
    _say(said)
    folder = execute(settings)
    _refuse_failed(folder)
    return folder


def execute(settings: Sweep, resume: bool = True, rerun: Literal["failed", "all"] | None = None) -> SweepFolder:
    """Run a sweep with progress, and nothing printed at its end."""
    from fedpgp.analysis.report.progress_bar import ProgressDisplay

    if settings.base.get("resources", {}).get("address"):
        use_token()
    from fedpgp.experiments.sweeps import sweep_runner
    from fedpgp.tracking import MLflowTracker

    with ProgressDisplay(err) as display:
        return sweep_runner.run(settings, rerun or ("failed" if resume else None), display, MLflowTracker())


def preview(settings: Sweep) -> None:
    """Say what a sweep would run, and start nothing."""
    from fedpgp.analysis.report.sweep_tables import dry_run
    from fedpgp.experiments.sweeps import estimation, sampling

    drawn = sampling.draw(settings)
    out.print(dry_run(settings, drawn, estimation.estimate(settings, drawn)), highlight=False)


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line, err=True)


def _refuse_failed(folder: SweepFolder) -> None:
    """Trials that failed make the command fail.

    Raises:
        FedPGPError: some did.
    """
    failed = [trial for trial, result in folder.results().items() if result.state == "failed"]
    if failed:
        first = folder.path / "trials" / f"{failed[0]}.txt"
        raise FedPGPError(f"{len(failed)} trial(s) failed; the first one's traceback is in {first}")


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(sweep)
    app.command()(lodo)
