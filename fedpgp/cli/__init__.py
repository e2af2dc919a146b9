"""The command line: arguments in, one call out. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from fedpgp import __version__
from fedpgp.cli import bench, data, export, inspect, report, reproduce, settings, sweep, track
from fedpgp.cli.doctor import command
from fedpgp.core.errors import ConfigError, FedPGPError, Interrupted, RunError
from fedpgp.core.files import is_full
from fedpgp.federation.backends.authentication import use_token

if TYPE_CHECKING:
    from fedpgp.analysis.report.progress_bar import ProgressDisplay
    from fedpgp.config import Experiment, ResourceSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated prompt learning on frozen CLIP models: FedPGP and its baselines, comparably.",
)
app.add_typer(bench.app, name="bench")
app.add_typer(settings.app, name="config")
app.add_typer(data.app, name="data")
inspect.register(app)
command.register(app)
export.register(app)
report.register(app)
reproduce.register(app)
sweep.register(app)
track.register(app)
out = Console()
err = Console(stderr=True)

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file of an experiment, or a shipped one: icons, shapes.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[a.b=value ...]", help="Settings to change, for example federation.rounds=5 method.rank=4."
    ),
]

DriverArgument = Annotated[str, typer.Argument(metavar="DRIVER", help="As printed by `fedpgp run --detach`.")]
AddressOption = Annotated[str | None, typer.Option(help="Address of the Ray cluster; default: RAY_ADDRESS.")]


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the user's input, 1 a failure of ours."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if os.environ.get("RAY_ADDRESS"):
        use_token()
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sign that the terminal does not have ends nothing
    try:
        app()
    except Interrupted as error:
        err.print(escape(str(error)), highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except FedPGPError as error:
        for line in str(error).splitlines():
            err.print(f"[red]error[/]: {escape(line)}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None and not is_full(error):  # not about a place that somebody gave
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}; free some"
        err.print(f"[red]error[/]: {escape(what)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a command as Ctrl-C does."""
    raise KeyboardInterrupt


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the newest run of exactly these settings; refused where an unfinished one has others.",
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave it running on a Ray that outlives this command, and return.")
    ] = False,
) -> None:
    """Run one federated experiment and print its table.

    Rows are written to storage.root/runs/NAME-DIGEST and mirrored to MLflow. Ctrl-C abandons the round that is going
    on and keeps those before it. With protocol.held_out=all every domain is held out once, and what has been run
    already is not run again.
    """
    from fedpgp.analysis.report.data_figures import partition_of_run
    from fedpgp.analysis.report.style import save
    from fedpgp.analysis.report.terminal import show
    from fedpgp.data.protocol import EVERY_DOMAIN
    from fedpgp.experiments import launch
    from fedpgp.tracking import MLflowTracker

    settings = _load(config, overrides)
    if settings.protocol.held_out == EVERY_DOMAIN:
        if detach:
            raise ConfigError(
                "--detach: with protocol.held_out=all there is a run for each domain, which this command has to start; "
                "leave --detach out, or give one domain (to leave all on a cluster: submit pipelines/lodo.py to it)"
            )
        sweep.lodo(config, overrides, resume=resume)
        return
    if detach:
        name = launch.detach(settings, resume, MLflowTracker())
        typer.echo(f"driver: {name}\nfollow it with: fedpgp attach {name}")
        return
    with _live() as live:
        folder = launch.run(settings, resume, live, MLflowTracker())
    if (heat_map := partition_of_run(folder)) is not None:
        save(heat_map, folder / "partition")
    out.print(show(folder))
    typer.echo(f"run: {folder}")


@app.command()
def demo(overrides: OverridesArgument = None) -> None:
    """Compare zero-shot, CoOp, PromptFL and FedPGP on the world that comes with the package: a table and a figure.

    `folds.seeds=[1]` takes one seed. What has been run already is not run again.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report.style import save
    from fedpgp.analysis.report.terminal import standings
    from fedpgp.analysis.report.tradeoff import local_against_novel

    folder = sweep.run("demo", overrides)
    compared = loading.compare(loading.Entry(path, label) for label, path in folder.labelled())
    root = folder.root
    figure, _ = save(local_against_novel(compared.groups), root / "demo")
    out.print(standings(compared))
    typer.echo(f"figure: {figure}")
    typer.echo(f"MLflow: {_beside('fedpgp')} ui {root}")


@app.command()
def attach(driver: DriverArgument, address: AddressOption = None) -> None:
    """Follow a detached run until it ends, and print its table. Ctrl-C leaves the run alone."""
    from fedpgp.analysis.report.terminal import show
    from fedpgp.experiments import launch

    try:
        with _live() as live:
            folder = launch.attach(driver, _cluster(address), live)
    except KeyboardInterrupt:
        raise Interrupted(f"not followed any more, but the run goes on; end it with: fedpgp stop {driver}") from None
    out.print(show(folder))
    typer.echo(f"run: {folder}")


@app.command()
def stop(driver: DriverArgument, address: AddressOption = None) -> None:
    """End a detached run: its round is abandoned, those before are kept, `--resume` goes on."""
    from fedpgp.experiments import launch

    launch.stop(driver, _cluster(address))
    typer.echo(f"stopping: {driver}")


@app.command()
def runs(
    root: Annotated[Path, typer.Argument(metavar="STORAGE_ROOT", help="Where the runs lie.")] = Path("fedpgp-store"),
    address: AddressOption = None,
) -> None:
    """List the runs under a storage root and how they ended, and the drivers on a cluster."""
    from fedpgp.analysis.report.terminal import drivers, overview
    from fedpgp.experiments import launch

    cluster = bool(address or os.environ.get("RAY_ADDRESS"))
    if cluster:
        out.print(drivers(launch.drivers(_cluster(address))))
    try:
        out.print(overview(root))
    except RunError:
        if not cluster:
            raise
        typer.echo(f"no run under {root} yet")  # a driver prepares before it has one


@app.command()
def features(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many bytes and how much time it would take, and extract nothing.")
    ] = False,
) -> None:
    """Extract the frozen image features that an experiment needs, and nothing more.

    Killed and started again, it goes on where it stopped.
    """
    from fedpgp.analysis.report.terminal import forecasts
    from fedpgp.experiments import launch

    settings = _load(config, overrides)
    with _live() as live:
        told = launch.forecast(settings, live) if dry_run else []
        paths = [] if dry_run else launch.extract(settings, live)
    if dry_run:
        resources = settings.resources
        out.print(forecasts(told, 1 if resources.backend == "serial" else resources.actors, resources.threads))
    for path in paths:
        typer.echo(f"features: {path}")


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="What is given to --working-dir.")] = Path("."),
) -> None:
    """Show what `ray job submit --working-dir FOLDER` would send, and refuse what is more than a cluster takes."""
    from fedpgp.federation.backends import working_dir as uploads

    found = uploads.of(folder)
    found.check()
    typer.echo(f"{found.size / uploads.MIB:.1f} MiB in {len(found.files)} files, the biggest:")
    typer.echo(found.biggest)


@app.command()
def methods() -> None:
    """List the methods: paper, what is shared, what stays with the client, numbers of parameters, settings."""
    from fedpgp.analysis.report.terminal import method_table
    from fedpgp.methods import METHODS
    from fedpgp.methods.size import REFERENCE, parameter_counts

    out.print(method_table(METHODS.values(), parameter_counts, REFERENCE))


def _beside(command: str) -> str:
    """A command of the environment that this one runs in, as it can be typed."""
    path = Path(sys.executable).with_name(command)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _load(config: str, overrides: list[str] | None) -> Experiment:
    from fedpgp import config as configs

    settings = configs.load(config, overrides or [])
    if settings.resources.address:
        use_token()
    return settings


def _cluster(address: str | None) -> ResourceSettings:
    from fedpgp.config import ResourceSettings

    if address:
        use_token()
    return ResourceSettings(address=address)


@contextmanager
def _live() -> Iterator[ProgressDisplay]:
    from fedpgp.analysis.report.progress_bar import ProgressDisplay

    with ProgressDisplay(err) as live:
        yield live
