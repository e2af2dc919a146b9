"""Figures of an experiment's data: images by client and class, and contact sheets of the clients' images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.report.style import COUNTS, blank, save, short, styled
from fedpgp.config import Experiment
from fedpgp.core.errors import RunError
from fedpgp.data import manifest as manifests
from fedpgp.data import protocol
from fedpgp.data.sources import open_source
from fedpgp.data.summary import partition_table
from fedpgp.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 96
"""Pixels of an image on a contact sheet."""
MARGIN = 4
LABEL = 16
MAX_TICKS = 60
SHEET_CLASSES = 12
SHEET_IMAGES = 8


def draw_data(settings: Experiment, folder: Path, max_clients: int) -> list[Path]:
    """Draw the partition and contact sheets of the first clients: a few images of a few of their classes.

    Returns:
        The files, all in `folder`.

    Raises:
        DataError: the data cannot be used, or an image cannot be read; then nothing is drawn.
    """
    manifest = manifests.build(settings.data)
    data = protocol.build(manifest, settings.partition, settings.protocol, settings.seed)
    classes = [manifest.class_names[label] for label in data.class_sets[data.train_set]]
    source = open_source(settings.data)
    sheets = {}
    for client, name in enumerate(data.client_names[:max_clients]):
        rows, labels = data.train_rows[client], data.train_labels[client]
        path = folder / f"client-{client:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png"
        sheets[path] = [
            (f"{name}: {classes[label]}", [fitted(image) for image in source.read(manifest.table.take(chosen))])
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
    """Draw the number of training images by client (down) and class (across).

    Args:
        table: `data.summary.partition_table`.
        clients: all clients, in order.
        classes: all training classes, in order.
    """
    counts_KC = _training_counts(table, clients, classes)
    width, height = (min(24.0, 3 + 0.22 * count) for count in (len(classes), len(clients)))
    figure = blank(max(6.0, width), max(3.0, height))
    axes = figure.subplots()
    axes.grid(visible=False)
    shown = axes.imshow(counts_KC, aspect="auto", cmap=COUNTS, interpolation="nearest", vmin=0)
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


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image]]], path: Path) -> None:
    """Draw images in labelled rows as PNG, one row per class."""
    from PIL import Image, ImageDraw

    columns = max((len(images) for _, images in rows), default=1)
    cell = SIDE + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, len(rows) * (cell + LABEL) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, images) in enumerate(rows):
        top = MARGIN + number * (cell + LABEL)
        pen.text((MARGIN, top), name.encode("latin-1", "replace").decode("latin-1"), fill="black")
        for column, image in enumerate(images):
            sheet.paste(fitted(image), (MARGIN + column * cell, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _training_counts(table: pa.Table, clients: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    import pyarrow.compute as pc

    train = table.filter(pc.equal(table["split"], "train"))
    counts = np.zeros((len(clients), len(classes)), np.int64)
    down = pc.index_in(train["client"], pa.array(clients, pa.string())).to_numpy()
    across = pc.index_in(train["class"], pa.array(classes, pa.string())).to_numpy()
    np.add.at(counts, (down, across), train["images"].to_numpy())
    return counts


def fitted(image: Image) -> Image:
    """Fit an image into a square of `SIDE` pixels, with its proportions."""
    from PIL import Image as images

    square = images.new("RGB", (SIDE, SIDE), "lightgrey")
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square
