"""The command line: arguments in, one call out. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import fedpgp
from fedpgp.cli import bench, data, report, settings, sweep
from fedpgp.cli.doctor import command as doctor
from fedpgp.cli.shared import ConfigArgument, OverridesArgument, deprecated, display, err, out
from fedpgp.core.callbacks import RunCallback, broadcast
from fedpgp.core.errors import ConfigError, FedPGPError, Interrupted, RunError
from fedpgp.core.files import explain, is_full
from fedpgp.federation.backends import check_variables, use_token

if TYPE_CHECKING:
    from fedpgp.config import Experiment, ResourceSettings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Federated prompt learning on frozen CLIP models: FedPGP and its baselines, comparable.",
)
app.add_typer(bench.app, name="bench")
app.add_typer(settings.app, name="config")
app.add_typer(data.app, name="data")
app.add_typer(report.track, name="track")

DriverArgument = Annotated[str, typer.Argument(metavar="DRIVER", help="As printed by `fedpgp run --detach`.")]
AddressOption = Annotated[str | None, typer.Option(help="Address of the Ray cluster; default: RAY_ADDRESS.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The argument of --working-dir.")]


def main() -> None:
    """Run the command line. Exit codes: 0 success, 2 invalid input, 1 runtime failure, 130 interrupted."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    if os.environ.get("RAY_ADDRESS"):
        use_token()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # replace characters that the terminal cannot show
    try:
        app()
    except FedPGPError as error:
        label = "" if isinstance(error, Interrupted) else "[red]error[/]: "
        for line in str(error).splitlines():
            err.print(f"{label}{escape(line)}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except PermissionError as error:
        if error.filename is None:
            raise
        err.print(f"[red]error[/]: {escape(explain(error, Path()))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and not is_full(error):  # not about a path that the user gave
            raise
        what = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}; free disk space"
        err.print(f"[red]error[/]: {escape(what)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped")
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    if version:
        typer.echo(fedpgp.__version__)
        raise typer.Exit


def run(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the newest run of exactly these settings; refused if an unfinished one has others.",
        ),
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Start it on a running Ray cluster and return; see `attach` and `stop`.")
    ] = False,
) -> None:
    """Run one federated experiment and print its table.

    Rows are written to storage.root/runs/NAME-DIGEST and mirrored to MLflow. Ctrl-C discards the current round and
    keeps those before. With protocol.held_out=all every domain is held out once; finished runs are not repeated.
    """
    from fedpgp.data.protocol import EVERY_DOMAIN
    from fedpgp.experiments import launch
    from fedpgp.tracking import MLflowTracker

    settings = _load(config, overrides)
    if settings.protocol.held_out == EVERY_DOMAIN:
        if detach:
            raise ConfigError(
                "--detach: protocol.held_out=all starts one run per domain from this command; leave out --detach, "
                "give one domain, or submit pipelines/lodo.py to the cluster"
            )
        sweep.lodo(config, overrides, resume=resume)
        return
    if detach:
        name = launch.detach(settings, resume, MLflowTracker())
        typer.echo(f"driver: {name}\nfollow it with: fedpgp attach {name}")
        return
    with display() as progress:
        launch.run(settings, resume, broadcast(progress, _Table()), MLflowTracker())


class _Table(RunCallback):
    """Prints the table of a run once it has finished, while its artifacts are sent to MLflow."""

    def on_end(self, folder: str, state: str) -> None:
        """Print the table."""
        if state == "finished":
            from fedpgp.analysis.report.terminal import show

            out.print(show(Path(folder)))
            typer.echo(f"run: {folder}")


def attach(driver: DriverArgument, address: AddressOption = None) -> None:
    """Follow a detached run until it ends, and print its table. Ctrl-C detaches; the run continues."""
    check_variables()
    from fedpgp.federation.backends import driver as drivers
    from fedpgp.federation.backends import ray_cluster

    try:
        with display() as progress, ray_cluster.connected(_cluster(address)):
            drivers.follow(drivers.find(driver), broadcast(progress, _Table()))
    except KeyboardInterrupt:
        raise Interrupted(f"detached; the run continues; stop it with: fedpgp stop {driver}") from None


def stop(driver: DriverArgument, address: AddressOption = None) -> None:
    """Stop a detached run: its current round is discarded, those before are kept; `--resume` continues."""
    check_variables()
    from fedpgp.federation.backends import driver as drivers
    from fedpgp.federation.backends import ray_cluster

    with ray_cluster.connected(_cluster(address)):
        drivers.stop(driver)
    typer.echo(f"stopping: {driver}")


def runs(
    root: Annotated[
        str, typer.Argument(metavar="STORAGE_ROOT", help="The storage.root of the runs, or a URI (s3://...).")
    ] = "fedpgp-store",
    address: AddressOption = None,
) -> None:
    """List the runs of a storage root with their states, and the drivers on a cluster."""
    from fedpgp.analysis.report.terminal import drivers, overview
    from fedpgp.storage import copies

    cluster = bool(address or os.environ.get("RAY_ADDRESS"))
    if cluster:
        check_variables()
        from fedpgp.federation.backends import driver, ray_cluster

        with ray_cluster.connected(_cluster(address)):
            out.print(drivers(driver.last_events()))
    try:
        out.print(overview(copies.local(root)))
    except RunError:
        if not cluster:
            raise
        typer.echo(f"no run under {root} yet")  # a driver may still be preparing its run


def features(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print how many bytes and how much time it would take; extract nothing.")
    ] = False,
) -> None:
    """Extract the frozen image features that an experiment needs, and nothing else.

    After an interruption the same command continues.
    """
    from fedpgp.analysis.report.terminal import forecasts
    from fedpgp.experiments import launch

    settings = _load(config, overrides)
    if dry_run:
        with display() as progress:
            forecast = launch.forecast(settings, progress)
        out.print(forecasts(forecast, settings.resources.workers, settings.resources.threads))
        return
    with display() as progress:
        paths = launch.extract(settings, progress)
    for path in paths:
        typer.echo(f"features: {path}")


def methods(
    server: Annotated[bool, typer.Option("--server", help="List the server rules: paper, what they need.")] = False,
    notes: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Explain one method, or with --server one server rule; also MODULE:CLASS."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="Count parameters and bytes on this model; default: ViT-B/16.")
    ] = None,
) -> None:
    """List the methods: paper, origin, what is shared, what stays with the client, parameter counts, settings."""
    from fedpgp import methods, server_rules
    from fedpgp.analysis.report import listings, pages
    from fedpgp.methods.size import REFERENCE, parameter_counts, sizes_of

    if notes is None and backbone is not None:
        raise ConfigError("--backbone: it counts the parameters of one method; give --notes NAME")
    if notes is not None and server:
        out.print(pages.rule_page(notes, server_rules.create(notes, {})))
    elif notes is not None:
        sizes = REFERENCE if backbone is None else sizes_of(backbone)
        out.print(pages.method_page(notes, methods.create(notes, {}), sizes))
    elif server:
        out.print(listings.rule_table(server_rules.available()))
    else:
        out.print(listings.method_table(methods.available(), parameter_counts, REFERENCE.name))


def check_upload(folder: FolderArgument = Path(".")) -> None:
    """Print what `ray job submit --working-dir FOLDER` would upload; fail if it is more than Ray accepts."""
    from fedpgp.core.text import MIB
    from fedpgp.federation.backends import working_dir

    found = working_dir.scan(folder)
    found.check()
    typer.echo(f"{found.size / MIB:.1f} MiB in {len(found.files)} files, the largest:")
    typer.echo(found.largest)


def upload(folder: FolderArgument = Path(".")) -> None:
    """Run `check-upload`, by its former name."""
    deprecated("upload", "check-upload")
    check_upload(folder)


def _load(config: str, overrides: list[str] | None) -> Experiment:
    from fedpgp import config as configs
    from fedpgp import methods

    settings = configs.load(config, overrides or [], methods.carry)
    if settings.resources.address:
        use_token()
    return settings


def _cluster(address: str | None) -> ResourceSettings:
    from fedpgp.config import ResourceSettings

    if address:
        use_token()
    return ResourceSettings(address=address)


COMMANDS = (
    run, sweep.sweep, sweep.lodo, sweep.demo, attach, stop, runs, features, report.report, report.compare,
    report.inspect, report.export, report.predict, sweep.reproduce, report.ui, doctor.doctor, methods, check_upload,
)  # fmt: skip
"""In the order of `fedpgp --help`."""
for command in COMMANDS:
    app.command()(command)
for command in (report.anatomy, upload):
    app.command(hidden=True)(command)
