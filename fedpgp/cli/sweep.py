"""Commands that run many experiments: `fedpgp sweep`, `fedpgp lodo`, `fedpgp demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import fedpgp
from fedpgp.cli.shared import out
from fedpgp.core.errors import FedPGPError

if TYPE_CHECKING:
    from fedpgp.experiments.sweeps.sweep_settings import Sweep

SweepArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file of a sweep or an experiment, or the name of a shipped one.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[a.b=value ...]",
        help="Settings to change: of the base (method.rank=4), or folds.seeds=[1], tune.max_concurrent=2. "
        "An overridden setting is no longer searched.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Draw and check all trials, estimate time and bytes, start nothing.")
]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume", help="Continue an unfinished sweep: run trials that have not ended, but no failed ones."),
]
RerunOption = Annotated[
    Literal["failed", "all"] | None,
    typer.Option("--rerun", help="failed: as --resume, and failed trials again; all: every trial from the start."),
]


def sweep(
    config: SweepArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    rerun: RerunOption = None,
) -> None:
    """Run many trials of one experiment and rank them.

    All trials are drawn and checked before the first starts. A trial that finished, in this sweep or another, is never
    run again. Ctrl-C stops the running trials; `--resume` continues. Without `--resume` and `--rerun`, a sweep that
    exists is refused if trials are left, and ranked if all have ended.
    """
    from fedpgp.analysis.report.terminal import ranking
    from fedpgp.experiments.sweeps import sweep_settings

    if dry_run:
        preview(*sweep_settings.load(config, overrides or []))
        return
    done = fedpgp.sweep(config, *(overrides or []), resume=resume, rerun=rerun)
    out.print(ranking(done.folder))
    typer.echo(f"sweep: {done.path}")
    refuse_failed(done)


def lodo(
    config: SweepArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    resume: Annotated[bool, typer.Option("--resume", help="The default here.", hidden=True)] = True,
    rerun: RerunOption = None,
) -> None:
    """Leave one domain out: hold out each domain in turn, and test every client's model on it.

    CONFIG is an experiment, or a sweep of which every trial is run this way. If the sweep exists and is unfinished, it
    is continued, as by `fedpgp sweep --resume`.
    """
    from fedpgp.analysis.report.terminal import held_out
    from fedpgp.experiments.sweeps import sweep_settings

    if dry_run:
        settings, notes = sweep_settings.load(config, overrides or [])
        preview(sweep_settings.leave_one_domain_out(settings), notes)
        return
    done = fedpgp.lodo(config, *(overrides or []), rerun=rerun)
    out.print(held_out(done.folder))
    typer.echo(f"sweep: {done.path}")
    refuse_failed(done)


def demo(overrides: OverridesArgument = None) -> None:
    """Compare zero-shot, CoOp, PromptFL and FedPGP on the data and model in the package: a table and a figure.

    `folds.seeds=[1]` runs one seed. Finished trials are not run again.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report.comparison_figures import local_against_novel
    from fedpgp.analysis.report.comparison_tables import standings
    from fedpgp.analysis.report.style import save

    done = fedpgp.sweep("demo", *(overrides or []), rerun="failed")
    refuse_failed(done)
    compared = loading.compare(loading.Entry(path, label) for label, path in done.folder.labelled())
    root = done.folder.root
    figure, _ = save(local_against_novel(compared.groups), root / "demo")
    out.print(standings(compared))
    typer.echo(f"figure: {figure}")
    typer.echo(f"MLflow: {_installed('fedpgp')} ui {root}")


def preview(settings: Sweep, notes: list[str] | None = None) -> None:
    """Print what a sweep would run, and start nothing."""
    from fedpgp.analysis.report.terminal import dry_run
    from fedpgp.experiments import estimation
    from fedpgp.experiments.sweeps import sampling

    for note in notes or ():
        typer.echo(note, err=True)
    drawn = sampling.draw(settings)
    out.print(dry_run(settings, drawn, estimation.of_sweep(settings, drawn)), highlight=False)


def refuse_failed(done: fedpgp.Sweep) -> None:
    """Make the command fail if a trial failed.

    Raises:
        FedPGPError: a trial failed.
    """
    failed = [trial for trial, result in done.folder.results().items() if result.state == "failed"]
    if failed:
        first = done.path / "trials" / f"{failed[0]}.txt"
        raise FedPGPError(f"{len(failed)} trial(s) failed; the first traceback is in {first}")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(sweep)
    app.command()(lodo)
    app.command()(demo)


def _installed(command: str) -> str:
    """A command of this environment, as the user can type it."""
    path = Path(sys.executable).with_name(command)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
