"""The commands `fedpgp export` and `fedpgp predict`: write a learned prompt to a file, and classify images with it."""

from pathlib import Path
from typing import Annotated

import typer

import fedpgp
from fedpgp.cli.shared import RunArgument, out, writable


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(export)
    app.command()(predict)


def export(
    run: RunArgument,
    client: Annotated[str, typer.Option(help="A client's number or name, or `global`: the server's model.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.", callback=writable)],
    which: Annotated[str, typer.Option("--round", help="last, or best: by validation images.")] = "last",
) -> None:
    """Export the prompt of a client or of the server: a safetensors file, its card as JSON, and an MLflow model."""
    from fedpgp.core.errors import ConfigError
    from fedpgp.export.exporting import FILE
    from fedpgp.export.mlflow_model import save

    if which not in ("last", "best"):
        raise ConfigError(f"--round: last or best (given: {which})")
    prompt = fedpgp.Run(run).prompt(client, which)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    path = prompt.save(folder / FILE)
    served = save(path, folder / "mlflow-model", prompt.weights)
    for title, item in (("prompt", path), ("card", path.with_suffix(".json")), ("MLflow model", served)):
        typer.echo(f"{title}: {item}")


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    prompt: Annotated[Path, typer.Option(help="The safetensors file that `fedpgp export` wrote.")],
    classes: Annotated[
        str | None, typer.Option(help="Other class names, separated by commas; unseen ones are allowed.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint file of the backbone, if it has one.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes per image.")] = 5,
) -> None:
    """Classify images with a learned prompt: the best classes with their probabilities."""
    from fedpgp.analysis.report.terminal import predictions

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    out.print(predictions(fedpgp.predict(prompt, images, names, weights, top)))
