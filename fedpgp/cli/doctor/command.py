"""The command `fedpgp doctor`: find problems of a run before it is started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fedpgp.cli.doctor.findings import Finding

out = Console()
err = Console(stderr=True)

COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="An experiment: also check what it needs.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=value ...]", help="Settings to change.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Check the installation, machine, storage root and data, and what an experiment needs. Starts and changes nothing.

    Exits with 1 if there is a problem, otherwise with 0.
    """
    from fedpgp.cli.doctor.checks import examine
    from fedpgp.cli.doctor.findings import State, verdict, worst

    with err.status("checking"):
        found = examine(config, overrides or [])
    state, summary = worst(found), verdict(found)
    if as_json:
        findings = [
            {"name": one.name, "state": one.state.name, "what": one.what, "advice": one.advice} for one in found
        ]
        typer.echo(json.dumps({"state": state.name, "verdict": summary, "findings": findings}, indent=2))
    else:
        out.print(_table(found))
        out.print(f"[{COLORS[state.name]}]{escape(summary)}[/]", highlight=False, soft_wrap=True)
    if state is State.problem:
        raise typer.Exit(1)


def _table(found: list[Finding]) -> Table:
    table = Table(show_lines=False)
    for heading in ("check", "state", "what"):
        table.add_column(heading, overflow="fold")
    for one in found:
        advice = f"\n[dim]-> {escape(one.advice)}[/]" if one.advice else ""
        color = COLORS[one.state.name]
        table.add_row(escape(one.name), f"[{color}]{one.state.name}[/]", escape(one.what) + advice)
    return table
