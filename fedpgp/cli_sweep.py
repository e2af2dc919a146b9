"""The commands that run many experiments as one: `fedpgp sweep`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)

SweepArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file of a sweep or an experiment, or a shipped one by its name.")
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[a.b=value ...]",
        help="Settings to change: of the base (base.method.rank=4 or method.rank=4), or folds.seeds=[1], "
        "tune.max_concurrent=2. What the space says of that key is replaced.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Draw and check all trials, estimate time and bytes, start nothing.")
]


def sweep(config: SweepArgument, overrides: OverridesArgument = None, dry_run: DryRunOption = False) -> None:
    """Run many trials of one experiment, and rank them.

    All trials are drawn and checked before the first starts. One that has finished is never run again.
    """
    from fedpgp.report import sweeps as report
    from fedpgp.sweeps import draw, estimate, spec

    settings, said = spec.load(config, overrides or [])
    for line in said:
        err.print(escape(line), highlight=False, soft_wrap=True)
    drawn = draw.draw(settings)
    if dry_run:
        out.print(report.dry_run(settings, drawn, estimate.estimate(settings, drawn)), highlight=False)
        return


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    app.command()(sweep)
