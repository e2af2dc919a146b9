"""The commands `fedpgp config init|schema`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Settings: a file with all of them, a schema for editors.")

HEAD = """\
# Every setting with its default, written by `fedpgp config init`. Omitted keys have these values.
# Run it with: fedpgp run {file}
"""


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The YAML file to write.")] = Path("experiment.yaml"),
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[a.b=value ...]", help="Values other than the defaults, such as method.name=coop."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write an experiment with every key and its comment. It runs as it is, on the data in the package."""
    from fedpgp import config
    from fedpgp.core.errors import ConfigError
    from fedpgp.experiments.planning import settings_types, settle

    if "=" in str(file):
        raise ConfigError(f"{file}: a setting; give the file first, then settings")
    experiment = settle(config.parse(config.override({}, overrides or [])))[0]
    text = HEAD.format(file=shlex.quote(str(file))) + config.annotated(experiment, settings_types(experiment))
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError:
        raise ConfigError(f"{file}: exists; give another name, or --force to overwrite it") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror}); give another path") from None
    typer.echo(f"settings: {file}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of an experiment file, for completion and checks in an editor."""
    from fedpgp import config, methods, server_rules
    from fedpgp.data import sources

    of_methods, of_rules = (
        {name: kind.settings_type for name, _, kind in registry.available() if isinstance(kind, type)}
        for registry in (methods.REGISTRY, server_rules.REGISTRY)
    )
    typer.echo(json.dumps(config.schema(of_methods, of_rules, sources.names()), indent=2, ensure_ascii=False))
