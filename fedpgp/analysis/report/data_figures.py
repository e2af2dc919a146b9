"""Figures: who holds what, and what the clients' images look like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.report.style import COUNTS, blank, short, styled
from fedpgp.core.errors import RunError
from fedpgp.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 96
"""Pixels of an image on a contact sheet."""
MARGIN = 4
LABEL = 16
MOST_TICKS = 60


@styled
def partition_heat_map(table: pa.Table, clients: Sequence[str], classes: Sequence[str]) -> Figure:
    """Training images by client (down) and class (across).

    Args:
        table: `data.summary.partition_table`.
        clients: all of them, in order.
        classes: all that are trained on, in order.
    """
    counts_KC = _training_counts(table, clients, classes)
    width, height = (min(24.0, 3 + 0.22 * count) for count in (len(classes), len(clients)))
    figure = blank(max(6.0, width), max(3.0, height))
    axes = figure.subplots()
    axes.grid(visible=False)
    shown = axes.imshow(counts_KC, aspect="auto", cmap=COUNTS, interpolation="nearest", vmin=0)
    figure.colorbar(shown, label="training images", ticks=MaxNLocator(integer=True))
    for axis, names in ((axes.xaxis, classes), (axes.yaxis, clients)):
        step = max(1, -(-len(names) // MOST_TICKS))
        axis.set_ticks(range(0, len(names), step), [short(name) for name in names[::step]], fontsize=7)
    axes.tick_params(axis="x", rotation=90)
    axes.set_title(f"{int(counts_KC.sum())} training images, {len(clients)} clients, {len(classes)} classes")
    return figure


def partition_of_run(run_dir: Path) -> Figure | None:
    """The heat map of a run's partition, drawn from its table. None if the run has no table.

    Raises:
        RunError: the folder is not that of a run, or its table is of something else.
    """
    store = RunFolder.open(run_dir)
    table, identity = store.partition, store.identity
    if table is None:
        return None
    held, holders = (set(table[column].unique().to_pylist()) for column in ("class", "client"))
    if strange := sorted([*held.difference(identity["class_names"]), *holders.difference(identity["client_names"])]):
        raise RunError(f"{run_dir}: partition.csv has {', '.join(strange[:3])}, which identity.json does not name")
    classes = [name for name in identity["class_names"] if name in held]
    return partition_heat_map(table, identity["client_names"], classes)


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image]]], path: Path) -> None:
    """Images in labelled rows, as PNG: one row per class."""
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
    """On a square of `SIDE`, proportions kept."""
    from PIL import Image as images

    square = images.new("RGB", (SIDE, SIDE), "lightgrey")
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    square.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return square
