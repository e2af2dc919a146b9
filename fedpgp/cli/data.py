"""The commands `fedpgp data check|prepare|show`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpgp.cli.shared import SettingsArgument, display, out, writable

if TYPE_CHECKING:
    from fedpgp.config import Experiment
    from fedpgp.data.manifest import Manifest

app = typer.Typer(no_args_is_help=True, help="Data sets: check, prepare, show.")


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(metavar="CONFIG|NAME", help="An experiment, or a data set by its name or MODULE:CLASS.")
    ],
    overrides: SettingsArgument = None,
    root: Annotated[str | None, typer.Option("--root", help="Folder or URI of the data set (data.root).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not open the images.")] = False,
) -> None:
    """Check a data set: counts, unreadable or rotated images, images in train and test, names that do not fit.

    The exit code is 2 if the data cannot be used as they are.
    """
    from fedpgp.analysis.report.terminal import itemized, split_counts
    from fedpgp.core.errors import DataError
    from fedpgp.data import content, manifest, summary

    settings = _settings(target, overrides or [], root)
    built = manifest.build(settings.data)
    _describe(built)
    counts = summary.manifest_table(built)
    for by in ("class", "domain"):
        out.print(split_counts(counts, by))
    _say(itemized("classes without images", summary.empty_classes(built)))
    if quick:
        return
    hashes = content.of(built, settings.storage.root)
    with display() as progress:

        def show(done: int, total: int) -> None:
            with suppress(DataError):  # `read_all` reports it
                hashes.fill(done)  # while the files are in memory
            progress.show("reading images", done, total)

        findings = summary.read_all(built, settings.data, show)
    _say(itemized("unreadable images", findings.unreadable))
    _say(itemized("in train and in test (or val)", [f"{one} = {other}" for one, other in findings.leaks]))
    _say(itemized("repeated within a split", [f"{one} = {other}" for one, other in findings.repeated]))
    if findings.rotated:
        _say(itemized("with an EXIF orientation other than 1, used as stored (not rotated)", findings.rotated))
    typer.echo(f"pixel digest: {findings.content}")
    if recorded := hashes.digest:
        typer.echo(f"content digest: {recorded} (of the files, as runs record it)")
    problems = [f"{len(findings.unreadable)} images cannot be read"] if findings.unreadable else []
    for part, own in zip(settings.data.members, built.members, strict=True):
        title = f"{own.name}: " if built.parts else ""
        _say([f"part {own.name}"] * bool(built.parts))
        found = _names_fit(settings.model_copy(update={"data": part})) if "train" in own.splits else []
        problems += [title + problem for problem in found]
    if problems:
        raise DataError("; ".join(problems))


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set by its name.")],
    root: Annotated[Path, typer.Option("--root", help="Folder to put it in.")],
) -> None:
    """Download, unpack and verify a data set; without a network, print the steps to do by hand."""
    from fedpgp.data.prepare import prepare as make_ready

    _describe(make_ready(name, root, typer.echo))
    typer.echo(f"ready: data.name={name} data.root={root}")


@app.command()
def show(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="An experiment.")],
    overrides: SettingsArgument = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="Where the figures go; default: storage.root/figures/NAME.", callback=writable),
    ] = None,
    clients: Annotated[int, typer.Option("--clients", min=0, help="Maximum number of contact sheets.")] = 20,
) -> None:
    """Draw what each client trains on: a contact sheet per client, and a heat map of classes by client."""
    from fedpgp.analysis.report.run_figures import draw_data
    from fedpgp.config import absolute

    settings = absolute(_settings(config, overrides or [], None))
    target = folder or settings.storage.root / "figures" / settings.name
    for path in draw_data(settings, target, clients):
        typer.echo(f"figure: {path}")


def _settings(target: str, overrides: list[str], root: str | None) -> Experiment:
    """The experiment, or the default experiment on a data set given by name."""
    from fedpgp import config, methods
    from fedpgp.data import sources

    given = [*overrides, *([f"data.root={root}"] if root is not None else [])]
    shipped = (config.shipped_configs() / "experiments" / f"{target}.yaml").is_file()
    if (target in sources.names() or ":" in target) and not shipped and not Path(target).is_file():
        return config.parse(config.override({"data": {"name": target}}, given), source=target)
    return config.load(target, given, methods.carry)


def _names_fit(settings: Experiment) -> list[str]:
    """Problems between names and labels of one data set, if the backbone can judge them."""
    from fedpgp.analysis import label_alignment

    if not label_alignment.can_judge(settings):
        _say(["zero-shot check skipped: the backbone does not know such images; give backbone.name, backbone.weights"])
        return []
    with display() as progress:
        found = label_alignment.zero_shot(settings, progress)
    _say([f"zero-shot accuracy on {found.images} training images: {found.given:.1f} %, best naming {found.best:.1f} %"])
    if found.exchanged or found.suspicious:
        _say(["names that fit the images better:", *(f"  {name} -> {other}" for name, other in found.moved)])
    if found.exchanged:
        return ["names and labels do not match: check data.class_names and the order of the classes"]
    if found.by_chance:
        return [
            f"zero-shot accuracy is that of guessing among {found.classes} classes: images, labels and names do not "
            "match, or the backbone was not trained on such images"
        ]
    return []


def _describe(manifest: Manifest) -> None:
    splits = ", ".join(sorted(set(manifest.splits.tolist())))
    typer.echo(
        f"{manifest.name}: {len(manifest)} images, {len(manifest.class_names)} classes, "
        f"{len(manifest.domains)} domains, splits {splits}\nmanifest digest: {manifest.digest}"
    )


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
