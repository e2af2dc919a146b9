"""The command `fedpgp doctor`, and the checks of the installation, which need none of the packages they check."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version
from rich.markup import escape
from rich.table import Table

from fedpgp.cli.doctor.findings import Finding, State, ok, problem, verdict, warning
from fedpgp.cli.shared import SettingsArgument, err, out
from fedpgp.core.errors import ConfigError
from fedpgp.federation.backends import use_token

COLORS = {State.ok: "green", State.warning: "yellow", State.problem: "red"}
PACKAGE = "fedpgp"
TESTED = {
    "python": "3.11",
    "mlflow": "3.17",
    "numpy": "2.4",
    "open_clip_torch": "3.3",
    "pyarrow": "25.0",
    "ray": "2.60",
    "scipy": "1.17",
    "timm": "1.0",
    "torch": "2.14",
    "torchvision": "0.29",
}
"""The versions with which the tests last passed. Others in the required range are untested."""


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
    found = list(installation())
    try:
        found += _beyond_the_packages(given, overrides)
    except ImportError as error:
        found.append(problem("packages", f"cannot be imported: {error}", "install them as said above, then look again"))
    return [finding.shown() for finding in found]


def _beyond_the_packages(given: str | None, overrides: Sequence[str]) -> Iterator[Finding]:
    """Checks that need the packages."""
    from fedpgp import config, methods

    experiment = config.Experiment()
    if given is not None:
        try:
            experiment = config.absolute(config.load(given, overrides, methods.defaults))
        except ConfigError as error:
            yield from (problem("settings", line) for line in str(error).splitlines())
            given = None
    if experiment.resources.address:
        use_token()  # before ray is imported

    from fedpgp.cli.doctor import checks

    yield from checks.machine(experiment)
    ray, nodes = checks.ray(experiment.resources)
    yield ray
    yield from checks.storage(experiment)
    yield from checks.experiment_needs(experiment, nodes, planned=given is not None)


def installation() -> Iterator[Finding]:
    """Check Python, then each package; packages without a finding are counted in one line."""
    try:
        about, texts = importlib.metadata.metadata(PACKAGE), importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield problem("packages", f"{PACKAGE} is not installed, only its files are here", "pip install -e .")
        return
    version, supported = platform.python_version(), about["Requires-Python"]
    if SpecifierSet(supported or "").contains(version, prereleases=True):
        yield _seen("python", version) or ok("python", version)
    else:
        advice = "make a new environment with another one"
        yield problem("python", f"{version}, but {PACKAGE} needs {supported}", advice)
    required = map(Requirement, texts)  # those of extras and of other platforms have markers that are false
    wanted = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = [finding for finding in map(_package, wanted) if finding is not None]
    yield from found
    yield ok("packages", f"{len(wanted) - len(found)} of {len(wanted)} as fedpgp {about['Version']} wants them")


def _package(requirement: Requirement) -> Finding | None:
    """A problem or warning about a package, if any."""
    name, label = requirement.name, f"package {requirement.name}"
    repair = f'pip install "{name}{requirement.specifier}"'
    try:
        version = importlib.metadata.version(name)
        fits = requirement.specifier.contains(Version(version), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return problem(label, "is not installed", repair)
    except InvalidVersion:
        return problem(label, f"has the version {version!r}, which is none", repair)
    if not fits:
        return problem(label, f"{version}, but {PACKAGE} needs {requirement.specifier}", repair)
    return _seen(name, version)


def _seen(name: str, version: str) -> Finding | None:
    """A warning if no version with the same major and minor number was tested."""
    tested = TESTED.get(name)
    if tested is None or Version(version).release[:2] == Version(tested).release:
        return None
    label = name if name == "python" else f"package {name}"
    return warning(label, f"{version} is untested, {tested} is what the tests have seen", "run `make test` with it")
