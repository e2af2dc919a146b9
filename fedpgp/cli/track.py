"""The MLflow commands: `fedpgp ui`, `fedpgp track sync`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The MLflow mirror of runs and sweeps.")

RootArgument = Annotated[Path, typer.Argument(metavar="[STORAGE_ROOT]", help="The storage.root of your runs.")]


def ui(
    root: RootArgument = Path("fedpgp-store"),
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1; default: 5000, or a free one.", min=1, max=65535)
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser if there is a display.")] = True,
) -> None:
    """Serve the MLflow UI for a storage root, on this machine only. Ctrl-C stops it."""
    import webbrowser

    from fedpgp.tracking import ui as interface

    store = interface.store_of(root)
    page = interface.page_of(store)
    with interface.serving(store, port) as (base, process):
        address = base + page
        typer.echo(f"MLflow: {address}   (Ctrl-C stops it)")
        if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            webbrowser.open(address)
        process.wait()


@app.command()
def sync(
    runs: Annotated[
        Path, typer.Argument(metavar="RUNS_DIR", help="A storage root, its folder `runs`, a run, or a sweep.")
    ],
    uri: Annotated[str | None, typer.Option(help="Tracking URI; default: the one of each run.")] = None,
) -> None:
    """Bring MLflow up to date with the rows on disk. Rows that it has are not sent again.

    Runs that were killed are closed as KILLED, unless they are running again.
    """
    from fedpgp.tracking import sync

    for folder in sync.everything(runs, uri):
        typer.echo(f"synced: {folder}")
