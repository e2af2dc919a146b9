"""The command `fedpgp doctor`: find problems of a run before it is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedpgp.cli.doctor.findings import Finding, State, problem, verdict
from fedpgp.cli.shared import SettingsArgument, err, out
from fedpgp.core.errors import ConfigError, ResourceError
from fedpgp.federation.backends import check_variables, use_token

COLORS = {State.ok: "green", State.warning: "yellow", State.problem: "red"}


def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="An experiment: also check what it needs.")
    ] = None,
    overrides: SettingsArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Check the installation, machine, storage root and data, and what an experiment needs. Starts and changes nothing.

    Exits with 1 if there is a problem, otherwise with 0.
    """
    with err.status("checking"):
        found = examine(config, overrides or [])
    state, summary = verdict(found)
    if as_json:
        findings = [vars(one) | {"state": one.state.name} for one in found]
        typer.echo(json.dumps({"state": state.name, "verdict": summary, "findings": findings}, indent=2))
    else:
        table = Table(show_lines=False)
        for heading in ("check", "state", "what"):
            table.add_column(heading, overflow="fold")
        for one in found:
            advice = f"\n[dim]-> {escape(one.advice)}[/]" if one.advice else ""
            shown = f"[{COLORS[one.state]}]{one.state.name}[/]"
            table.add_row(escape(one.name), shown, escape(one.what) + advice)
        out.print(table)
        out.print(f"[{COLORS[state]}]{escape(summary)}[/]", highlight=False, soft_wrap=True)
    if state is State.problem:
        raise typer.Exit(1)


def examine(given: str | None = None, overrides: Sequence[str] = ()) -> list[Finding]:
    """Run all checks, each after those that it depends on; the findings show no credentials.

    Starts no run and no Ray, and leaves nothing on disk.

    Args:
        given: an experiment, as `config.load` takes it; None: only the other checks, of the default root.
    """
    from fedpgp.cli.doctor import installation

    found = list(installation.examine())
    try:
        found += _beyond_the_packages(given, overrides)
    except ImportError as error:
        found.append(problem("packages", f"cannot be imported: {error}", "install them as said above, then look again"))
    return [finding.shown() for finding in found]


def _beyond_the_packages(given: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Checks that need the packages."""
    from fedpgp import config, methods

    experiment = config.absolute(config.Experiment())
    if given is not None:
        try:
            experiment = config.absolute(config.load(given, overrides, methods.carry))
        except ConfigError as error:
            yield from (problem("settings", line) for line in str(error).splitlines())
            given = None
    if experiment.resources.address:
        use_token()  # before ray is imported
    try:
        check_variables()
    except ResourceError as error:
        yield problem("ray", str(error))
        return

    from fedpgp.cli.doctor import checks

    yield from checks.machine(experiment)
    ray, nodes = checks.ray(experiment.resources)
    yield ray
    yield from checks.storage(experiment)
    yield from checks.experiment_needs(experiment, nodes, planned=given is not None)
