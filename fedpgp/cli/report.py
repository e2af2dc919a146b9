"""The commands that look back: `fedpgp report` and `fedpgp compare`."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedpgp.cli.output_folder import writable

if TYPE_CHECKING:
    from fedpgp.analysis.comparison import Comparison

out = Console()


class Format(StrEnum):
    """How a report is written."""

    md = "md"
    html = "html"
    csv = "csv"


AnywayOption = Annotated[
    bool, typer.Option("--anyway", help="Compare what should not be compared, or has not finished; it is marked.")
]


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of runs or of sweeps, or a storage root.")
    ],
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: tables in the terminal; with --out: html.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write it here, with the figures as PNG and SVG.", callback=writable),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="The group that differences are taken to; default: the first.")
    ] = None,
    anyway: AnywayOption = False,
) -> None:
    """Compare runs from their rows on disk: tables, figures, and an HTML file with all of it.

    Runs that differ by seed and held-out domain only are one group. Runs on different data or partitions are not
    compared with one another.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import tables, terminal

    if form is None and folder is None and len(runs) == 1 and (runs[0] / "identity.json").is_file():
        out.print(terminal.show(runs[0]))
        return
    comparison = loading.find(runs).compare(anyway)
    chosen = comparison.baseline(baseline)
    if form is None and folder is None:
        out.print(tables.in_terminal(tables.sheets(comparison, chosen), tables.remarks(comparison)))
        return
    chosen_form = form or Format.html
    text = _text(comparison, chosen, chosen_form, runs, folder)
    if folder is None:
        typer.echo(text, nl=False)
        return
    path = folder / f"report.{chosen_form}"
    path.write_text(text, encoding="utf-8")
    typer.echo(f"report: {path}")


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    anyway: AnywayOption = False,
) -> None:
    """Compare two runs: the settings that differ, their metrics, and what each client gains or loses."""
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import pairwise

    first, second, notes = loading.pair(run_a, run_b, anyway)
    out.print(pairwise.side_by_side(first, second, notes))


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(report)
    app.command()(compare)


def _text(comparison: Comparison, baseline: str, form: Format, runs: list[Path], folder: Path | None) -> str:
    """The report; its figures go into the folder too, if there is one."""
    from fedpgp.analysis.report import tables
    from fedpgp.analysis.report.figures import gallery
    from fedpgp.analysis.report.page import page
    from fedpgp.analysis.report.style import save

    pictures, notes = gallery(comparison) if folder is not None or form is Format.html else ([], [])
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            save(picture.figure, folder / picture.name)
    if form is Format.csv:
        return tables.as_csv(comparison, baseline)
    if form is Format.md:
        return tables.as_markdown(tables.sheets(comparison, baseline), [*tables.remarks(comparison), *notes])
    names = ", ".join(path.absolute().name for path in runs[:3]) + (f" and {len(runs) - 3} more" if runs[3:] else "")
    return page(comparison, baseline, f"fedpgp: {names}", pictures, notes, _commands(runs, baseline))


def _commands(runs: list[Path], baseline: str) -> list[str]:
    """What makes the sweeps, then this report, again; single runs have theirs in the report."""
    sweeps = [path.absolute() / "sweep.yaml" for path in runs if (path / "trials.json").is_file()]
    given = " ".join(shlex.quote(str(path.absolute())) for path in runs)
    told = f"fedpgp report {given} --baseline {shlex.quote(baseline)} --out report"
    return [*(f"fedpgp sweep {shlex.quote(str(path))}" for path in sweeps), told]
