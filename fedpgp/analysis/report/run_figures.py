"""Figures of runs and their data: images by client and class, accuracy and loss over rounds, confusion matrices."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from fedpgp.analysis.report.fonts import font_file
from fedpgp.analysis.report.style import COLORS, DASHES, MAX_NAME, panel, render, save, short, styled
from fedpgp.config import Experiment
from fedpgp.core.errors import RunError
from fedpgp.data import manifest as manifests
from fedpgp.data import protocol
from fedpgp.data.sources import open_source
from fedpgp.data.summary import partition_table
from fedpgp.federation.metrics import METRICS, NEW_CLIENT, RoundRow
from fedpgp.storage.run_folder import RunFolder

SIDE = 96
"""Pixels of an image on a contact sheet."""
MARGIN = 4
LABEL = 16
MAX_TICKS = 60
SHEET_CLASSES = 12
SHEET_IMAGES = 8
MAX_LABELS = 14
"""Runs that the legend names."""
MAX_MARKERS = 30
MAX_NAMES = 40
"""Names on an axis; with more classes, every second, third ... name."""
MAX_PAIRS = 3
DPI = 80
DASHES_OF = {"test": "-", "val": "--", NEW_CLIENT: ":"}
"""Lines of the splits; the first one of a metric has its label."""

Line = tuple[list[int], list[float]]


def draw_data(settings: Experiment, folder: Path, max_clients: int) -> list[Path]:
    """Draw the partition and contact sheets of the first clients, a few images of a few of their classes; the files.

    Raises:
        DataError: the data cannot be used, or an image cannot be read; then nothing is drawn.
    """
    manifest = manifests.build(settings.data)
    data = protocol.build(manifest, settings.partition, settings.protocol, settings.seed)
    trained = {label for client in range(data.num_clients) for label in data.class_sets[data.train_set_of(client)]}
    classes = [manifest.class_names[label] for label in sorted(trained)]
    source = open_source(settings.data)
    sheets = {}
    for client, name in enumerate(data.client_names[:max_clients]):
        rows, labels = data.train_rows[client], data.global_labels(client)
        path = folder / f"client-{client:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png"
        sheets[path] = [
            (
                f"{name}: {manifest.class_names[label]}",
                [fitted(image) for image in source.read(manifest.table.take(chosen))],
            )
            for label in np.unique(labels)[:SHEET_CLASSES]
            for chosen in [rows[labels == label][:SHEET_IMAGES]]
        ]
    heat_map = partition_heat_map(partition_table(manifest, data), data.client_names, classes)
    paths = save(heat_map, folder / "partition")
    for path, sheet in sheets.items():
        contact_sheet(sheet, path)
    return [*paths, *sheets]


@styled
def partition_heat_map(table: pa.Table, clients: Sequence[str], classes: Sequence[str]) -> Figure:
    """Draw the training images in `data.summary.partition_table` by client (down) and class (across), in this order."""
    counts_KC = _training_counts(table, clients, classes)
    width, height = (min(24.0, 3 + 0.22 * count) for count in (len(classes), len(clients)))
    figure, axes = panel(max(6.0, width), max(3.0, height))
    shown = axes.imshow(counts_KC, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0)
    figure.colorbar(shown, label="training images", ticks=MaxNLocator(integer=True))
    for axis, names in ((axes.xaxis, classes), (axes.yaxis, clients)):
        step = max(1, -(-len(names) // MAX_TICKS))
        axis.set_ticks(range(0, len(names), step), [short(name) for name in names[::step]], fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.set_title(f"{int(counts_KC.sum())} training images, {len(clients)} clients, {len(classes)} classes")
    return figure


def partition_of_run(run_dir: Path) -> Figure | None:
    """Draw the partition of a run from its table; None if the run has no table.

    Raises:
        RunError: the folder is not a run folder, or its table belongs to another run.
    """
    store = RunFolder.open(run_dir)
    table, identity = store.partition, store.identity
    if table is None:
        return None
    held, holders = (set(table[column].unique().to_pylist()) for column in ("class", "client"))
    if unknown := sorted([*held.difference(identity["class_names"]), *holders.difference(identity["client_names"])]):
        raise RunError(f"{run_dir}: partition.csv has {', '.join(unknown[:3])}, which identity.json does not name")
    classes = [name for name in identity["class_names"] if name in held]
    return partition_heat_map(table, identity["client_names"], classes)


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> None:
    """Draw images in labelled rows as PNG, one row per class."""
    columns = max((len(images) for _, images in rows), default=1)
    cell = SIDE + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, len(rows) * (cell + LABEL) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, images) in enumerate(rows):
        top = MARGIN + number * (cell + LABEL)
        label = name.encode("latin-1", "replace").decode("latin-1")
        if label != name and (file := font_file(name)) is not None:
            pen.text((MARGIN, top), name, fill="black", font=ImageFont.truetype(file, LABEL - 4))
        else:
            pen.text((MARGIN, top), label, fill="black")
        for column, image in enumerate(images):
            sheet.paste(fitted(image), (MARGIN + column * cell, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def fitted(image: Image.Image) -> Image.Image:
    """Fit an image into a square of `SIDE` pixels, with its proportions."""
    square = Image.new("RGB", (SIDE, SIDE), "lightgrey")
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square


def curves_of_run(rounds: Sequence[RoundRow], path: Path) -> None:
    """Draw accuracy and mean training loss with its parts by round, if evaluated.

    Test is solid, validation dashed, new clients are dotted.
    """
    names = [f"{split}/{metric}" for metric in METRICS for split in DASHES_OF]
    lines = {name: line for name in names if (line := _line(rounds, name))[0]}
    if lines:
        losses = sorted({name for row in rounds for name in row.metrics if name.startswith("train/")} - {"train/loss"})
        _save(_accuracy_and_loss(lines, {name: _line(rounds, name) for name in ("train/loss", *losses)}), path)


def curves_of_several(runs: Mapping[str, Sequence[RoundRow]], metric: str, path: Path) -> None:
    """Draw one metric by round with a line for each run (rounds by label) that measured it, if any did."""
    lines = {label: line for label, rounds in runs.items() if (line := _line(rounds, metric))[0]}
    if lines:
        _save(_side_by_side(lines, metric), path, bbox_inches="tight")


def confusion_matrices(table: pa.Table, class_names: Sequence[str], path: Path) -> None:
    """Draw a panel per metric: for each class (down) the share of test images predicted as each (across), if any.

    Args:
        table: `RunFolder.confusion`.
        class_names: the names of its labels.
    """
    test = table.filter(pc.field("split") == "test")
    metrics = [metric for metric in METRICS if metric in set(test["metric"].to_pylist())]
    if not metrics:
        return
    matrices = [_matrix(test.filter(pc.field("metric") == metric)) for metric in metrics]
    named = [(_named(classes, class_names), counts_CC) for classes, counts_CC in matrices]
    figure, panels = _panels(named)
    shown: list[str] = []
    for axes, metric, (names, counts_CC) in zip(panels, metrics, named, strict=True):
        _draw(axes, metric, names, counts_CC, repeated=names == shown)
        shown = names
    _save(figure, path)


def _training_counts(table: pa.Table, clients: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    train = table.filter(pc.equal(table["split"], "train"))
    counts = np.zeros((len(clients), len(classes)), np.int64)
    down = pc.index_in(train["client"], pa.array(clients, pa.string())).to_numpy()
    across = pc.index_in(train["class"], pa.array(classes, pa.string())).to_numpy()
    np.add.at(counts, (down, across), train["images"].to_numpy())
    return counts


@styled
def _accuracy_and_loss(lines: Mapping[str, Line], losses: Mapping[str, Line]) -> Figure:
    figure = Figure(figsize=(9.6, 3.8))  # fixed margins: a layout engine doubles the time
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12, top=0.97, wspace=0.15)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    metrics = list(dict.fromkeys(name.partition("/")[2] for name in lines))
    for name, line in lines.items():
        split, _, metric = name.partition("/")
        color = COLORS[metrics.index(metric) % len(COLORS)]
        shown = next(one for one in DASHES_OF if f"{one}/{metric}" in lines)
        label = metric if split == shown else None
        _plot(left, line, color=color, label=label, linestyle=DASHES_OF[split])
    left.plot([], [], "k--", label="validation")
    if any(name.startswith(NEW_CLIENT) for name in lines):
        left.plot([], [], "k:", label="new clients")
    left.set(xlabel="round", ylabel="accuracy in percent, mean over clients")
    left.legend(ncols=2)
    for number, (name, line) in enumerate(losses.items()):
        _plot(right, line, color=COLORS[number % len(COLORS)], label=name.removeprefix("train/"))
    if len(losses) > 1:
        right.legend()
    right.set(xlabel="round", ylabel="training loss, mean over clients")
    return figure


@styled
def _side_by_side(lines: Mapping[str, Line], metric: str) -> Figure:
    figure = Figure(figsize=(8.0, 4.4))  # saving it makes room for the legend on the right
    axes = figure.subplots()
    for number, (label, line) in enumerate(lines.items()):
        dashes = DASHES[number // len(COLORS) % len(DASHES)]
        label_or_none = label if number < MAX_LABELS else None
        _plot(axes, line, linestyle=dashes, color=COLORS[number % len(COLORS)], label=label_or_none)
    axes.set(xlabel="round", ylabel=f"{metric} in percent")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _plot(axes: Axes, line: Line, **options: Any) -> None:
    axes.plot(*line, marker="." if len(line[0]) < MAX_MARKERS else None, **options)
    axes.locator_params(axis="x", integer=True)


def _line(rounds: Sequence[RoundRow], metric: str) -> Line:
    measured = [row for row in rounds if metric in row.metrics]
    return [row.round for row in measured], [row.metrics[metric] for row in measured]


def _save(figure: Figure, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    render(figure, path, dpi=DPI, metadata={"Software": None}, **options)


def _panels(named: Sequence[tuple[Sequence[str], np.ndarray]]) -> tuple[Figure, Sequence[Axes]]:
    """Squares side by side, with room for the names; fixed margins, because a layout engine takes a second."""
    side = min(8.0, max(3.0, 0.14 * max(len(names) for names, _ in named)))
    room = 0.5 + 0.06 * max(len(name) for names, _ in named for name in names)
    width, height = (side + room) * len(named) + 0.1, side + 1.2
    figure = Figure(figsize=(width, height))
    lefts = [(side + room) * number + room for number in range(len(named))]
    return figure, [figure.add_axes((left / width, 0.85 / height, side / width, side / height)) for left in lefts]


def _named(labels: np.ndarray, class_names: Sequence[str]) -> list[str]:
    return [textwrap.shorten(class_names[label], MAX_NAME, placeholder="…") for label in labels]


def _matrix(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The labels that occur, and the counts of predictions for each pair."""
    labels, answers, counts = (rows[name].to_numpy() for name in ("label", "answer", "count"))
    classes = np.unique(np.concatenate([labels, answers]))
    counts_CC = np.zeros((len(classes), len(classes)), np.int64)
    counts_CC[np.searchsorted(classes, labels), np.searchsorted(classes, answers)] = counts
    return classes, counts_CC


def _draw(axes: Axes, metric: str, names: Sequence[str], counts_CC: np.ndarray, repeated: bool) -> None:
    """Draw a panel, with names on the left of the first of several panels with the same classes."""
    percent_CC = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(min=1)
    axes.imshow(percent_CC, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    step = -(-len(names) // MAX_NAMES)
    axes.set(xticks=[], yticks=[])
    across = axes.get_yaxis_transform()  # x as a share of the panel's width, y as a row
    # drawing text takes most of the time; texts are faster than ticks
    for row in () if repeated else range(0, len(names), step):
        axes.text(-0.015, row, names[row], transform=across, ha="right", va="center", fontsize=7)
    right = 100 * counts_CC.trace() / counts_CC.sum()
    axes.set_title(f"{metric}: {right:.1f} % correct", fontsize=9)
    below = "\n".join(["down: class, across: prediction", *_worst_pairs(names, counts_CC, percent_CC)])
    axes.text(0.5, -0.02, below, transform=axes.transAxes, ha="center", va="top", fontsize=8)


def _worst_pairs(names: Sequence[str], counts_CC: np.ndarray, percent_CC: np.ndarray) -> list[str]:
    """The pairs that are confused most often."""
    wrong = counts_CC * ~np.eye(len(names), dtype=bool)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [divmod(int(place), len(names)) for place in worst if wrong.flat[place]]
    return [f"{names[label]} as {names[answer]}: {percent_CC[label, answer]:.0f} %" for label, answer in pairs]
