"""Confusion matrices of the clients' models: one per metric, and the pairs confused most."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.federation.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMES = 40
"""Names on an axis; with more classes, every second, third ... name."""
MAX_PAIRS = 3
MAX_NAME = 24


def confusion_matrices(table: pa.Table, class_names: Sequence[str], path: Path) -> bool:
    """Draw a panel per metric on test images as PNG: for each class (down) the share predicted as each (across).

    Args:
        table: `RunFolder.confusion`.
        class_names: the names of its labels.

    Returns:
        Whether there was anything to draw.
    """
    test = table.filter(pc.field("split") == "test")
    metrics = [metric for metric in METRICS if metric in set(test["metric"].to_pylist())]
    if not metrics:
        return False
    matrices = [_matrix(test.filter(pc.field("metric") == metric)) for metric in metrics]
    named = [(_named(classes, class_names), counts_CC) for classes, counts_CC in matrices]
    figure, panels = _panels(named)
    shown: list[str] = []
    for axes, metric, (names, counts_CC) in zip(panels, metrics, named, strict=True):
        _draw(axes, metric, names, counts_CC, repeated=names == shown)
        shown = names
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    return True


def _panels(named: Sequence[tuple[Sequence[str], np.ndarray]]) -> tuple[Figure, Sequence[Axes]]:
    """Squares side by side, with room for the names; fixed margins, because a layout engine takes a second."""
    from matplotlib.figure import Figure

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
    """Draw a panel, with names on the left of the first of several panels with the same classes.

    Drawing text takes most of the time; texts are faster than ticks.
    """
    percent_CC = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(min=1)
    axes.imshow(percent_CC, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    step = -(-len(names) // MAX_NAMES)
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)
    across = axes.get_yaxis_transform()  # x as a share of the panel's width, y as a row
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
