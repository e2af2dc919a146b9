"""`fedpgp bench ...`: measurements anyone can repeat."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpgp.cli.shared import err, out
from fedpgp.core.errors import FedPGPError

if TYPE_CHECKING:
    from fedpgp.bench.measurement import Measurement

app = typer.Typer(no_args_is_help=True, help="Measurements anyone can repeat; each prints a table.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
ProfileOption = Annotated[bool, typer.Option("--profile", help="Say where our time goes instead.")]
ThreadsOption = Annotated[int, typer.Option(help="Torch threads.", min=1)]

_progress = partial(err.print, highlight=False)
"""Shows one line of progress."""


@app.command()
def overhead(
    clients: Annotated[str, typer.Option(help="Numbers of clients.")] = "10,100,1000,10000",
    actors: Annotated[int, typer.Option(help="Client actors.")] = 2,
    server: Annotated[str, typer.Option(help="Server rules, with commas between; see `fedpgp methods`.")] = "fedavg",
    as_json: JsonOption = False,
) -> None:
    """Seconds per round of clients that do nothing, and memory of the server rule."""
    from fedpgp import server_rules
    from fedpgp.bench import engine

    rules = {name: server_rules.create(name, {}) for name in server.split(",")}
    _show(engine.overhead(_numbers(clients), actors, _progress, rules), as_json)


@app.command()
def growth(
    clients: Annotated[str, typer.Option(help="Numbers of clients, smallest first.")] = "100,1000,10000",
    actors: Annotated[int, typer.Option(help="Client actors.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Time per participant and growth of memory, from hundreds to thousands of FedPGP clients on actors."""
    from fedpgp.bench import engine

    _show(engine.growth(_numbers(clients), actors, _progress), as_json)


@app.command()
def scale(
    clients: Annotated[str, typer.Option(help="Numbers of clients, smallest first.")] = "100,10000,1000000",
    participants: Annotated[int, typer.Option(help="Clients that train in a round.", min=1)] = 1000,
    personal_memory: Annotated[str, typer.Option(help="As resources.personal_memory.")] = "512MiB",
    kill: Annotated[bool, typer.Option("--kill", help="Also kill the largest run, resume and compare it.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Write time per round by clients as PNG.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time of a round, memory and disk of up to a million FedPGP clients, of whom a thousand train in a round."""
    from fedpgp.bench import scale as bench

    found = bench.measure(_numbers(clients), participants, _progress, personal_memory, kill)
    if figure is not None:
        from fedpgp.analysis.report.growth import growth_figure
        from fedpgp.analysis.report.style import encoded

        figure.write_bytes(encoded(growth_figure(bench.curves(found), "clients", "seconds per round"), "png"))
    _show(found, as_json)


@app.command()
def faults(
    kills: Annotated[int, typer.Option(help="How often something is killed.", min=1)] = 20, as_json: JsonOption = False
) -> None:
    """Random kills of actors, driver and whole run: nothing lost, nothing doubled, the same bits."""
    from fedpgp.bench import reliability

    _show(reliability.faults(kills, _progress), as_json)


@app.command()
def step(threads: ThreadsOption = 2, profile: ProfileOption = False, as_json: JsonOption = False) -> None:
    """One FedPGP local step of ViT-B/16 size against the authors' way of taking it."""
    from fedpgp.bench import step as bench

    _show(bench.profile(threads) if profile else bench.measure(threads, _progress), as_json)


@app.command(name="round")
def round_(
    threads: ThreadsOption = 2,
    profile: ProfileOption = False,
    actors: Annotated[
        str | None, typer.Option(help="Instead: unequal clients on so many actors, for example 2,4.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A FedPGP round of 10 clients with its tests against the authors' way of it."""
    from fedpgp.bench import dirichlet
    from fedpgp.bench import round as bench

    if actors:
        found = dirichlet.actors(_numbers(actors), _progress)
    else:
        found = bench.profile(threads) if profile else bench.measure(threads, _progress)
    _show(found, as_json)


@app.command()
def dirichlet(
    threads: ThreadsOption = 2,
    images: Annotated[int, typer.Option(help="Images of the 100 clients together.", min=1000)] = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Rounds of 100 unequal clients against the sum of their steps. About five minutes."""
    from fedpgp.bench import dirichlet as bench

    _show(bench.measure(threads, _progress, images), as_json)


@app.command()
def clients(threads: ThreadsOption = 2, profile: ProfileOption = False, as_json: JsonOption = False) -> None:
    """A block of 10 clients as one batch against one at a time; --profile: against the peak, by kind of operator."""
    from fedpgp.bench import roofline, step

    _show((roofline.measure if profile else step.clients)(threads, _progress), as_json)


@app.command()
def classes(threads: ThreadsOption = 2, as_json: JsonOption = False) -> None:
    """Memory and time of a step on ImageNet's 1,000 classes, by backbone.class_chunk."""
    from fedpgp.bench import step

    _show(step.classes(threads, _progress), as_json)


@app.command(name="methods")
def methods_(
    method: Annotated[str | None, typer.Option(help="Methods, with commas between; default: all.")] = None,
    clients: Annotated[int, typer.Option(help="Clients, all of which train.", min=1)] = 10,
    classes: Annotated[int, typer.Option(help="Classes.", min=2, max=100)] = 50,
    images: Annotated[int, typer.Option(help="Images of a client in a step.", min=1)] = 4,
    steps: Annotated[int, typer.Option(help="Steps of a client in a round.", min=1)] = 1,
    backbone: Annotated[str, typer.Option(help="Model, with random weights.")] = "ViT-B-16",
    threads: ThreadsOption = 2,
    as_json: JsonOption = False,
) -> None:
    """Seconds and floating-point operations of a round of every method, beside PromptFL's. A quarter of an hour."""
    from fedpgp import methods
    from fedpgp.bench.methods import Setting, measure
    from fedpgp.clip import model
    from fedpgp.config import BackboneSettings

    names = method.split(",") if method else [name for name, _, kind in methods.available() if isinstance(kind, type)]
    chosen = {name: methods.create(name, {}) for name in names}
    loaded = model.load(BackboneSettings(name=backbone, weights="random"))
    _show(measure(chosen, Setting(loaded, clients, classes, images, steps, threads), _progress), as_json)


@app.command()
def features(threads: ThreadsOption = 2, as_json: JsonOption = False) -> None:
    """Extraction of frozen features against the bare image tower, and their cache against Parquet."""
    from fedpgp.bench import features as bench

    _show(bench.measure(threads, _progress), as_json)


@app.command()
def gpu(as_json: JsonOption = False) -> None:
    """Parity with the CPU, equal bits, memory and speed of a GPU. At most five minutes."""
    from fedpgp.bench import gpu as bench

    device = bench.require()
    _show(bench.measure(_progress, device, bench.full()), as_json)


@app.command()
def sweep(
    quick: Annotated[bool, typer.Option("--quick", help="Little of everything: about a minute, and rough.")] = False,
    as_json: JsonOption = False,
) -> None:
    """What a sweep costs beside its trials: starts, MLflow, memory, disk. About a quarter of an hour."""
    from fedpgp.bench import sweep as bench

    _show(bench.measure(bench.QUICK if quick else bench.FULL, _progress), as_json)


@app.command()
def search(as_json: JsonOption = False) -> None:
    """Trials in which Optuna and random search find the best of a recorded grid; seconds, nothing is trained."""
    from fedpgp.experiments.sweeps import probes

    probes.check_installed()
    from fedpgp.bench import search as bench

    _show(bench.measure(_progress, bench.load()), as_json)


@app.command()
def suite(
    only: Annotated[str | None, typer.Option(help="Benches, with commas between; default: all of the suite.")] = None,
    against: Annotated[Path | None, typer.Option(help="Figures of --save; default: those of the last release.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write all figures to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Every bench, each ratio beside that of the last release, so that a regression is seen. More than an hour."""
    from fedpgp import __version__
    from fedpgp.bench import suite as bench

    names = only.split(",") if only else list(bench.RATIOS)
    if unknown := [name for name in names if name not in bench.RATIOS]:
        raise typer.BadParameter(f"--only: no bench {unknown[0]!r} in the suite; known: {', '.join(bench.RATIOS)}")
    found, figures = bench.measure(names, bench.read(against) if against else bench.released(), _progress)
    if save is not None:
        bench.write(save, __version__, figures)
    _show(found, as_json)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(help="How long; at least three cycles are run.", min=0)] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Runs and sweeps one after the other: memory, file handles, threads, object store and disk must not grow."""
    from fedpgp.bench import reliability

    _show(reliability.soak(minutes, _progress), as_json)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}: give whole numbers with commas between") from None


def _show(found: Measurement, as_json: bool) -> None:
    from fedpgp.analysis.report.tables import Table

    out.print(Table(f"bench {found.bench}", found.headings, found.rows, caption="\n".join(found.notes)))
    if as_json:
        typer.echo(found.as_json())
    if found.failures:
        raise FedPGPError(f"bench {found.bench}: {'; '.join(found.failures)}")
