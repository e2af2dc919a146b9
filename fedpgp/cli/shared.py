"""What the commands share: consoles, arguments, and notices about renamed commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedpgp.core.errors import ConfigError
from fedpgp.core.files import in_the_way

if TYPE_CHECKING:
    from fedpgp.analysis.report.progress_bar import ProgressDisplay

PIPED_COLUMNS = 120
"""Width of what is written to a file or a pipe, which has none; in Rich's 80 columns wide tables lose content."""
out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_COLUMNS)
err = Console(stderr=True)


def display() -> ProgressDisplay:
    """A progress display on stderr, for a `with` block."""
    from fedpgp.analysis.report.progress_bar import ProgressDisplay

    return ProgressDisplay(err)


def writable(folder: Path | None) -> Path | None:
    """Return the value of `--out`, or raise `ConfigError` if no file can be created there."""
    if folder is not None and (found := in_the_way(folder)) is not None:
        raise ConfigError(f"--out: {found} is not a writable folder; give --out FOLDER")
    return folder


def deprecated(old: str, new: str) -> None:
    """Print that a command or an option has another name now."""
    err.print(f"{old} is deprecated and will be removed in the next version; use {new}", highlight=False)


def _renamed_option(given: bool) -> bool:
    if given:
        deprecated("--anyway", "--allow-mismatch")
    return given


ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file of an experiment, or a shipped one: icons, shapes.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[a.b=value ...]", help="Settings to change, such as federation.rounds=5 method.rank=4."),
]
SettingsArgument = Annotated[list[str] | None, typer.Argument(metavar="[a.b=value ...]", help="Settings to change.")]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to.", callback=writable)]
AllowMismatchOption = Annotated[
    bool,
    typer.Option("--allow-mismatch", help="Also compare unfinished runs and runs on different data; they are marked."),
]
AnywayOption = Annotated[bool, typer.Option("--anyway", hidden=True, callback=_renamed_option)]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_DIR", help="Folder of a run, also a URI (s3://...).")]
