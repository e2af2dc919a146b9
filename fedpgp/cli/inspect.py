"""The command `fedpgp anatomy`: is what was learned low-rank, and does it repeat what was there?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console()


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(anatomy)


def anatomy(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a run of fedlora or fedpgp.")],
    rank: Annotated[int | None, typer.Option(help="fedlora: singular directions; default: the adapters' rank.")] = None,
) -> None:
    """Take apart what was learned: adapters against their weights, or the spectrum of the personal prompts."""
    from fedpgp.analysis import adapter_analysis as parts
    from fedpgp.analysis.report.adapter_tables import overlaps, ranks

    if parts.has_adapters(run):
        out.print(overlaps(parts.adapters(run, rank)))
    else:
        out.print(ranks(parts.personal_parts(run)))
