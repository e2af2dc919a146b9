"""Commands that read runs: their reports and learned prompts, and their mirror in MLflow."""

import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

import fedpgp
from fedpgp.cli.shared import AllowMismatchOption, AnywayOption, OutOption, RunArgument, deprecated, err, out, writable
from fedpgp.core.text import redacted
from fedpgp.core.uris import is_uri

track = typer.Typer(no_args_is_help=True, help="The MLflow mirror of runs and sweeps.")


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUNS...", help="Run folders, sweep folders, storage roots; also URIs (s3://...)."),
    ],
    form: Annotated[
        Literal["md", "html", "csv"] | None,
        typer.Option("--format", help="Default: tables in the terminal; with --out: html."),
    ] = None,
    folder: OutOption = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Group that differences refer to; default: the first.")
    ] = None,
    allow_mismatch: AllowMismatchOption = False,
    anyway: AnywayOption = False,
) -> None:
    """Compare runs: tables, paired differences, figures, and one HTML file with all of it.

    Runs that differ only in seed and held-out domain form one group. Runs on different data or partitions are not
    compared with one another. With --out, figures are also written as PNG and SVG.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import comparison_tables, pareto, tables, terminal
    from fedpgp.storage import copies

    paths = [copies.local(run) for run in runs]
    if form is not None or folder is not None:
        written = fedpgp.report(paths, folder, form or "html", baseline, allow_mismatch or anyway)
        typer.echo(written if folder is None else f"report: {written}", nl=folder is not None)
    elif len(paths) == 1 and (paths[0] / "identity.json").is_file():
        out.print(terminal.show(paths[0]))
    else:
        comparison = loading.find(paths).compare(allow_mismatch or anyway)
        shown = comparison_tables.all_tables(comparison, comparison.baseline(baseline))
        fronts = [table for table, _ in pareto.of_paths(paths)]
        out.print(tables.in_terminal([*fronts, *shown], comparison_tables.remarks(comparison)))


def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="Folder of a run, also a URI (s3://...).")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Folder of another.")],
    allow_mismatch: AllowMismatchOption = False,
    anyway: AnywayOption = False,
) -> None:
    """Compare two runs: settings that differ, metrics, and what each client gains or loses."""
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import comparison_tables
    from fedpgp.storage import copies

    first, second, notes = loading.pair(copies.local(run_a), copies.local(run_b), allow_mismatch or anyway)
    out.print(comparison_tables.side_by_side(first, second, notes))


def inspect(
    run: RunArgument,
    rank: Annotated[int | None, typer.Option(help="fedlora: singular directions; default: the adapters' rank.")] = None,
) -> None:
    """Analyze what a run of fedlora or fedpgp has learned.

    fedlora: its adapters against the weights that they change. fedpgp: the spectrum of its personal prompts.
    """
    from fedpgp.analysis import adapters, learned
    from fedpgp.analysis.report.terminal import overlaps, spectrum_table
    from fedpgp.storage import copies

    path = copies.local(run, checkpoints=True)
    if adapters.has_adapters(path):
        out.print(overlaps(adapters.adapters(path, rank)))
    else:
        out.print(spectrum_table(learned.personal_parts(path)))


def anatomy(run: RunArgument, rank: int | None = None) -> None:
    """Run `inspect`, by its former name."""
    deprecated("anatomy", "inspect")
    inspect(run, rank)


def export(
    run: RunArgument,
    client: Annotated[str, typer.Option(help="A client's number or name, or `global`: the server's model.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder to write to.", callback=writable)],
    which: Annotated[str, typer.Option("--round", help="last, or best: by validation images.")] = "last",
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also register the model in MLflow, with the alias best.")
    ] = None,
) -> None:
    """Export the prompt of a client or of the server: a safetensors file, its card as JSON, and an MLflow model."""
    from fedpgp.core.errors import ConfigError
    from fedpgp.export.exporting import FILE
    from fedpgp.export.mlflow_model import save
    from fedpgp.storage import copies
    from fedpgp.tracking import registry

    if which not in ("last", "best"):
        raise ConfigError(f"--round: last or best (given: {which})")
    registration = None if register is None else registry.Registration.prepare(copies.local(run), register)
    prompt = fedpgp.Run(run).prompt(client, which)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    path = prompt.save(folder / FILE)
    served = save(path, folder / "mlflow-model", prompt.weights)
    for title, item in (("prompt", path), ("card", path.with_suffix(".json")), ("MLflow model", served)):
        typer.echo(f"{title}: {item}")
    if registration is not None:
        typer.echo(f"registered: {registration.add(served, prompt.card)}")


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    prompt: Annotated[Path, typer.Option(help="The safetensors file that `fedpgp export` wrote.")],
    classes: Annotated[
        str | None, typer.Option(help="Other class names, separated by commas; unseen ones are allowed.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint file of the backbone, if it has one.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of classes per image.")] = 5,
) -> None:
    """Classify images with a learned prompt: the best classes with their probabilities.

    The EXIF orientation of photos is applied.
    """
    from fedpgp.analysis.report.terminal import predictions

    names = None if classes is None else [name.strip() for name in classes.split(",")]
    out.print(predictions(fedpgp.predict(prompt, images, names, weights, top)))


def ui(
    root: Annotated[
        str, typer.Argument(metavar="[STORAGE_ROOT]", help="The storage.root of your runs, or a URI (s3://...).")
    ] = "fedpgp-store",
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1; default: 5000, or a free one.", min=1, max=65535)
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser if there is a display.")] = True,
) -> None:
    """Serve the MLflow UI for a storage root, on this machine only. Ctrl-C stops it.

    It opens on the trials of the newest sweep, best first. The links of its other views are printed: charts of the
    trials, single runs, all runs. If MLFLOW_TRACKING_URI is set, that store is shown; a server is opened, not served.
    For a URI, a store is built from the rows there.
    """
    from fedpgp.tracking import ui as interface
    from fedpgp.tracking.uri_check import is_server

    if is_uri(root):
        with err.status("reading the rows"):
            store, note = interface.store_at(root)
        typer.echo(note)
    else:
        store = interface.store_of(Path(root))
    if is_server(store):
        _show(store, _saved_views(store), "MLFLOW_TRACKING_URI", browser)
        return
    with interface.serving(store, port) as base:
        _show(base, _saved_views(store), "Ctrl-C stops it", browser)
        threading.Event().wait()


def _saved_views(uri: str) -> dict[str, str]:
    """The views of a store, if it can be asked and lets this user save them."""
    from fedpgp.core.errors import FedPGPError
    from fedpgp.tracking import views

    try:
        return views.save(uri)
    except FedPGPError as error:
        typer.echo(f"no views: {error}", err=True)
        return {}


def _show(base: str, views: dict[str, str], note: str, browser: bool) -> None:
    """Print the address of MLflow's interface and of its views, and open the first view if wanted and possible."""
    import webbrowser

    address = base.rstrip("/") + next(iter(views.values()), "")
    typer.echo(f"MLflow: {redacted(address)}   ({note})")
    for name, page in views.items():
        typer.echo(f"  {name}: {redacted(base.rstrip('/') + page)}")
    if browser and (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(address)


@track.command()
def sync(
    runs: Annotated[
        str,
        typer.Argument(metavar="RUNS_DIR", help="A storage root, its `runs`, a run or a sweep; also a URI."),
    ],
    uri: Annotated[str | None, typer.Option(help="Tracking URI; default: the one of each run.")] = None,
) -> None:
    """Bring MLflow up to date with the rows on disk. Rows that it has are not sent again.

    Runs that were killed are closed as KILLED, unless they are running again.
    """
    from fedpgp.storage import copies
    from fedpgp.tracking import sync_all

    for folder in sync_all(copies.local(runs, checkpoints=True), uri):
        typer.echo(f"synced: {copies.source_of(folder)}")
