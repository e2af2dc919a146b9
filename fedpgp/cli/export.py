"""The commands `fedpgp export` and `fedpgp predict`: a learned prompt leaves its run and classifies images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpgp.cli.output_folder import writable

out = Console()


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(export)
    app.command()(predict)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Folder of a finished run.")],
    client: Annotated[str, typer.Option(help="A client's number or name, or `global`: the server's model.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.", callback=writable)],
    which: Annotated[str, typer.Option("--round", help="last, or best: by validation images.")] = "last",
) -> None:
    """Write what a client or the server has learned: a safetensors file, its card as JSON, and an MLflow model."""
    import yaml

    from fedpgp.core.errors import ConfigError
    from fedpgp.export import mlflow_model
    from fedpgp.export.exporting import export as write
    from fedpgp.storage.run_folder import RunFolder

    if which not in ("last", "best"):
        raise ConfigError(f"--round: last or best (given: {which})")
    path = write(run, client, folder, which)  # type: ignore[arg-type]
    weights = yaml.safe_load(RunFolder.open(run).config_yaml)["backbone"]["weights"]
    served = mlflow_model.save(path, folder / "mlflow-model", weights if weights and Path(weights).is_file() else None)
    for title, item in (("prompt", path), ("card", path.with_suffix(".json")), ("MLflow model", served)):
        typer.echo(f"{title}: {item}")


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    prompt: Annotated[Path, typer.Option(help="The safetensors file that `fedpgp export` wrote.")],
    classes: Annotated[
        str | None, typer.Option(help="Other class names, separated by commas, also such as it has never seen.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint file of the backbone, if it has one.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
) -> None:
    """Classify images with a learned prompt: the best classes with their probabilities."""
    from fedpgp.analysis.report.predictions import predictions
    from fedpgp.data.sources import decoding
    from fedpgp.export.prompt_file import Predictor, Prompt, best

    pictures = [decoding.read(path, str(path)) for path in images]
    predictor = Predictor(Prompt.load(prompt), weights)
    names = predictor.class_names if classes is None else tuple(name.strip() for name in classes.split(","))
    found = best(predictor.probabilities(pictures, names), names, top)
    out.print(predictions([str(path) for path in images], found))
