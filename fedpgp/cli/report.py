"""Commands that read finished runs: `report`, `compare`, `inspect`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import fedpgp
from fedpgp.cli.shared import AllowMismatchOption, AnywayOption, OutOption, RunArgument, deprecated, out


class Format(StrEnum):
    """Format of a report."""

    md = "md"
    html = "html"
    csv = "csv"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run folders, sweep folders, storage roots.")],
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: tables in the terminal; with --out: html.")
    ] = None,
    folder: OutOption = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Group that differences refer to; default: the first.")
    ] = None,
    allow_mismatch: AllowMismatchOption = False,
    anyway: AnywayOption = False,
) -> None:
    """Compare runs: tables, paired differences, figures, and one HTML file with all of it.

    Runs that differ only in seed and held-out domain form one group. Runs on different data or partitions are not
    compared with one another. With --out, figures are also written as PNG and SVG.
    """
    if form is None and folder is None:
        _in_terminal(runs, baseline, allow_mismatch or anyway)
        return
    chosen = form or Format.html
    written = fedpgp.report(runs, folder, chosen.value, baseline, allow_mismatch or anyway)
    typer.echo(written if folder is None else f"report: {written}", nl=folder is not None)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    allow_mismatch: AllowMismatchOption = False,
    anyway: AnywayOption = False,
) -> None:
    """Compare two runs: settings that differ, metrics, and what each client gains or loses."""
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import comparison_tables

    first, second, notes = loading.pair(run_a, run_b, allow_mismatch or anyway)
    out.print(comparison_tables.side_by_side(first, second, notes))


def inspect(
    run: RunArgument,
    rank: Annotated[int | None, typer.Option(help="fedlora: singular directions; default: the adapters' rank.")] = None,
) -> None:
    """Analyze what a run of fedlora or fedpgp has learned.

    fedlora: its adapters against the weights that they change. fedpgp: the spectrum of its personal prompts.
    """
    from fedpgp.analysis import learned
    from fedpgp.analysis.report.terminal import overlaps, spectrum_table

    if learned.has_adapters(run):
        out.print(overlaps(learned.adapters(run, rank)))
    else:
        out.print(spectrum_table(learned.personal_parts(run)))


def anatomy(run: RunArgument, rank: int | None = None) -> None:
    """Run `inspect`, by its former name."""
    deprecated("anatomy", "inspect")
    inspect(run, rank)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(report)
    app.command()(compare)
    app.command()(inspect)
    app.command(hidden=True)(anatomy)


def _in_terminal(runs: list[Path], baseline: str | None, allow_mismatch: bool) -> None:
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import comparison_tables, tables, terminal

    if len(runs) == 1 and (runs[0] / "identity.json").is_file():
        out.print(terminal.show(runs[0]))
        return
    comparison = loading.find(runs).compare(allow_mismatch)
    chosen = comparison.baseline(baseline)
    shown = comparison_tables.all_tables(comparison, chosen)
    out.print(tables.in_terminal(shown, comparison_tables.remarks(comparison)))
