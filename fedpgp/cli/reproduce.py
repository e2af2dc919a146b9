"""The command `fedpgp reproduce`: run a table of a paper and print our numbers beside the published ones."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import fedpgp
from fedpgp.cli import sweep
from fedpgp.cli.shared import OutOption, out
from fedpgp.core.errors import FedPGPError

if TYPE_CHECKING:
    from fedpgp.analysis.reproduce.cells import Reproduction

NAMES = "table1, table2, table4, table5, table6, table7, table11, pfedpt, lora"


def reproduce(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=f"One of {NAMES}.")],
    overrides: sweep.OverridesArgument = None,
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
    dry_run: sweep.DryRunOption = False,
) -> None:
    """Run the experiments of a table of a paper, and print our numbers beside the published ones.

    Each table is a sweep: finished runs, of this table or another, are not repeated, and after an interruption the same
    command continues. Deviations from the paper are marked. With --out: Markdown, CSV, and a report with figures.
    """
    from fedpgp.analysis.reproduce import cells, planning

    plan = planning.plan(table, data or (), root, backbone, smoke, overrides or ())
    if dry_run:
        for part in plan.parts:
            sweep.preview(part.sweep)
        return
    folders = [fedpgp.sweep(part.sweep, rerun="failed").folder for part in plan.parts]
    found = cells.fill(plan, folders)
    _print(found)
    for one in folders:
        typer.echo(f"sweep: {one.path}")
    if folder is not None:
        _write(found, folder, [one.path for one in folders])
    failed = [f"{one.path.name}: {one.status['reason']}" for one in folders if one.state == "failed"]
    if failed:
        raise FedPGPError("\n".join(failed))


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(reproduce)


def _print(found: Reproduction) -> None:
    from fedpgp.analysis.report.tables import in_terminal
    from fedpgp.analysis.reproduce import cells

    out.print(in_terminal(cells.all_tables(found), cells.remarks(found)), highlight=False)


def _write(found: Reproduction, folder: Path, sweeps: list[Path]) -> None:
    """Write the table as Markdown and CSV, and an HTML report with the comparison of its runs and their figures."""
    from fedpgp.analysis import loading
    from fedpgp.analysis.report.figures import all_figures
    from fedpgp.analysis.report.style import save
    from fedpgp.analysis.report.tables import as_markdown
    from fedpgp.analysis.report.writing import page
    from fedpgp.analysis.reproduce import cells

    folder.mkdir(parents=True, exist_ok=True)
    name, tables, remarks = found.plan.name, cells.all_tables(found), cells.remarks(found)
    compared = loading.find(sweeps).compare()
    figures, notes = all_figures(compared)
    for one in figures:
        save(one.figure, folder / one.name)
    command = shlex.join(["fedpgp", *sys.argv[1:]])
    html = page(
        compared, compared.baseline(None), f"fedpgp: {name}", figures, [*remarks, *notes], [command], first=tables
    )
    for suffix, text in (("md", as_markdown(tables, remarks)), ("csv", cells.as_csv(found)), ("html", html)):
        path = folder / f"{name}.{suffix}"
        path.write_text(text, encoding="utf-8")
        typer.echo(f"table: {path}")
