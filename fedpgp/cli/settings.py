"""The commands `fedpgp config ...`: every setting there is, as a file to start from or as a schema for an editor."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Every setting: a file to start from, a schema for an editor.")

HEAD = """\
# Every setting with its default, written by `fedpgp config init`. A key left out has the value given here.
# Run it with: fedpgp run {file}
"""


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The YAML file to write.")] = Path("experiment.yaml"),
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=value ...]", help="Other values than the defaults, for example method.name=coop."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write an experiment with every key and its comment. It runs as it is, on the world in the package."""
    from fedpgp import config
    from fedpgp.core.errors import ConfigError
    from fedpgp.experiments.planning import settle

    if "=" in str(file):
        raise ConfigError(f"{file}: is a setting; give the file first, then settings")
    experiment, method = settle(config.parse(config.override({}, overrides or [])))
    text = HEAD.format(file=shlex.quote(str(file))) + config.annotated(experiment, type(method.settings))
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise ConfigError(f"{file}: is there already; give another name, or --force to write over it") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror}); give a file in a folder of yours") from None
    typer.echo(f"settings: {file}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of an experiment's file, with which an editor completes, explains and checks it."""
    from fedpgp import config
    from fedpgp.methods import METHODS

    settings = {name: method.settings_type for name, method in METHODS.items()}
    typer.echo(json.dumps(config.schema(settings), indent=2, ensure_ascii=False))
