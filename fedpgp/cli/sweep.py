"""Commands that run many experiments: `fedpgp sweep`, `fedpgp lodo`, `fedpgp demo`, `fedpgp reproduce`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

import fedpgp
from fedpgp.cli.shared import OutOption, out
from fedpgp.core.errors import FedPGPError

if TYPE_CHECKING:
    from fedpgp.analysis.reproduce.cells import Reproduction
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
RerunOption = Annotated[
    Literal["failed", "all"] | None,
    typer.Option("--rerun", help="failed: as --resume, and failed trials again; all: every trial from the start."),
]


def sweep(
    config: SweepArgument,
    overrides: OverridesArgument = None,
    dry_run: DryRunOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an unfinished sweep: run trials that have not ended, but no failed ones."
        ),
    ] = False,
    rerun: RerunOption = None,
) -> None:
    """Run many trials of one experiment and rank them.

    All trials are drawn and checked before the first starts; with tune.search=optuna, each is suggested from the
    results of those before. With two metrics, the table of the Pareto front follows. A trial that finished, in this
    sweep or another, is never run again. Ctrl-C stops the running trials; `--resume` continues. Without `--resume` and
    `--rerun`, a sweep that exists is refused if trials are left, and ranked if all have ended.
    """
    from fedpgp.analysis.report.pareto import front_table
    from fedpgp.analysis.report.terminal import ranking
    from fedpgp.experiments.sweeps import sweep_settings

    if dry_run:
        _preview(*sweep_settings.load(config, overrides or []))
        return
    done = fedpgp.sweep(config, *(overrides or []), resume=resume, rerun=rerun)
    out.print(ranking(done.folder))
    if done.folder.front():
        out.print(front_table(done.folder))
    typer.echo(f"sweep: {done.path}")
    _refuse_failed(done)


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
        _preview(sweep_settings.leave_one_domain_out(settings), notes)
        return
    done = fedpgp.lodo(config, *(overrides or []), rerun=rerun)
    out.print(held_out(done.folder))
    typer.echo(f"sweep: {done.path}")
    _refuse_failed(done)


def demo(overrides: OverridesArgument = None) -> None:
    """Compare zero-shot, CoOp, PromptFL and FedPGP on the data and model in the package: a table and a figure.

    `folds.seeds=[1]` runs one seed. Finished trials are not run again.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report.comparison_tables import standings
    from fedpgp.analysis.report.demo_figure import local_novel_front
    from fedpgp.analysis.report.live_standings import LiveStandings
    from fedpgp.analysis.report.style import save
    from fedpgp.experiments.sweeps import sweep_settings

    settings, notes = sweep_settings.load("demo", overrides or [])
    with LiveStandings(Console(stderr=True), tuple(settings.variants)) as display:
        for note in notes:
            display.on_message(note)
        done = fedpgp.sweep(settings, rerun="failed", progress=display)
    _refuse_failed(done)
    compared = loading.compare(loading.Entry(path, label) for label, path in done.folder.labelled())
    root = done.folder.root
    figure, _ = save(local_novel_front(compared.groups), root / "demo")
    out.print(standings(compared))
    typer.echo(f"figure: {figure}")
    typer.echo("Next:")
    again = [*(overrides or ()), "folds.splits=[1,2,3,4]"]
    for arguments, purpose in (
        (["ui", str(root)], "every run and round in MLflow"),
        (["report", str(done.path), "--baseline", "PromptFL"], "paired differences with confidence intervals"),
        (["demo", *again], "four divisions of the drawings: smaller errors, in about four times the time"),
    ):
        typer.echo(f"  {_command()} {shlex.join(arguments)}  # {purpose}")


def _command() -> str:
    """How `fedpgp` of this environment is called from the current folder."""
    command, here = Path(sys.executable).with_name("fedpgp"), Path.cwd()
    return str(command.relative_to(here) if command.is_relative_to(here) else command)


def _list_tables(wanted: bool) -> None:
    """Print the names of the tables instead of running one."""
    if wanted:
        from fedpgp.analysis.reproduce import listing

        out.print(listing.overview())
        raise typer.Exit


def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Name of a table, see --list.")],
    overrides: OverridesArgument = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A data set of the table; repeatable; default: all.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Parent of the data sets' folders, DIR/NAME; default: data.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="Another model, or a file of weights for CLIP's ViT-B/16; default: OpenAI's."
        ),
    ] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two rounds on the data and model in the package, in minutes.")
    ] = False,
    folder: OutOption = None,
    dry_run: DryRunOption = False,
    listing: Annotated[
        bool, typer.Option("--list", is_eager=True, callback=_list_tables, help="List the tables and exit.")
    ] = False,
) -> None:
    """Run the experiments of a table of a paper, and print our numbers beside the published ones.

    Each table is a sweep: finished runs, of this table or another, are not repeated, and after an interruption the same
    command continues. Deviations from the paper are marked. With --out: Markdown, CSV, and a report with figures.
    """
    from fedpgp.analysis.report.tables import in_terminal
    from fedpgp.analysis.reproduce import cells, planning

    plan = planning.plan(table, data or (), root, backbone, smoke, overrides or ())
    if dry_run:
        for part in plan.parts:
            _preview(part.sweep)
        return
    folders = [fedpgp.sweep(part.sweep, rerun="failed").folder for part in plan.parts]
    found = cells.fill(plan, folders)
    out.print(in_terminal(cells.all_tables(found), cells.remarks(found)), highlight=False)
    for one in folders:
        typer.echo(f"sweep: {one.path}")
    if folder is not None:
        _write(found, folder, [one.path for one in folders])
    failed = [f"{one.path.name}: {one.status['reason']}" for one in folders if one.state == "failed"]
    if failed:
        raise FedPGPError("\n".join(failed))


def _preview(settings: Sweep, notes: list[str] | None = None) -> None:
    """Print what a sweep would run, and start nothing."""
    from fedpgp.analysis.report.terminal import dry_run
    from fedpgp.experiments import estimation
    from fedpgp.experiments.sweeps import sampling
    from fedpgp.tracking import MLflowTracker

    drawn = sampling.draw(settings)
    MLflowTracker().settled(drawn.trials[0].experiment)
    for note in (*(notes or ()), drawn.dropped, drawn.unranked):
        if note:
            typer.echo(note, err=True)
    out.print(dry_run(settings, drawn, estimation.of_sweep(settings, drawn)), highlight=False)


def _refuse_failed(done: fedpgp.Sweep) -> None:
    failed = [trial for trial, result in done.folder.results().items() if result.state == "failed"]
    if failed:
        first = done.path / "trials" / f"{failed[0]}.txt"
        raise FedPGPError(f"{len(failed)} trial(s) failed; the first traceback is in {first}")


def _write(found: Reproduction, folder: Path, sweeps: list[Path]) -> None:
    """Write the table as Markdown and CSV, and an HTML report with the comparison of its runs and their figures."""
    from fedpgp.analysis import loading
    from fedpgp.analysis.report.figures import all_figures
    from fedpgp.analysis.report.tables import as_markdown
    from fedpgp.analysis.report.writing import page
    from fedpgp.analysis.reproduce import cells

    folder.mkdir(parents=True, exist_ok=True)
    name, tables, remarks = found.plan.name, cells.all_tables(found), cells.remarks(found)
    compared = loading.find(sweeps).compare()
    figures, notes = all_figures(compared)
    for one in figures:
        one.drawing.save(folder / one.name)
    command = shlex.join(["fedpgp", *sys.argv[1:]])
    html = page(
        compared, compared.baseline(None), f"fedpgp: {name}", figures, [*remarks, *notes], [command], first=tables
    )
    for suffix, text in (("md", as_markdown(tables, remarks)), ("csv", cells.as_csv(found)), ("html", html)):
        path = folder / f"{name}.{suffix}"
        path.write_text(text, encoding="utf-8")
        typer.echo(f"table: {path}")
