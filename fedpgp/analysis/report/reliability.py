"""Reliability diagrams: how often answers of a confidence are correct, from the exact counts of runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.comparison import METRIC_TITLES, Group
from fedpgp.analysis.report.style import COLORS, styled, wrapped
from fedpgp.federation.metrics import last_evaluated
from fedpgp.federation.pooled_counts import BINS, MILLION
from fedpgp.storage.run_folder import RunFolder

Bins = np.ndarray
"""(`BINS`, 3) images, correct ones, sum of the confidence in millionths."""
COLUMNS = ("images", "correct", "confidence")
SIDE, SHARES, GAP = 2.0, 0.58, 0.55
"""Inches: width and height of a panel, height of the one below it, and between columns."""
ROW = SHARES + SIDE + 0.36
LINE, TICK_ROOM, BELOW = 0.15, 0.5, 0.75
"""Inches of a line of text, of the numbers at an axis, and of what is below the last row."""
TICKS = range(0, 101, 20)
DIAGONAL: Any = {"color": "0.4", "linestyle": "--", "linewidth": 1}
ACCURACY: Any = {"facecolor": COLORS[2], "edgecolor": "white"}
DIFFERENCE: Any = {"facecolor": "none", "edgecolor": COLORS[1], "hatch": "////", "linewidth": 0.8}


def bins_of(store: RunFolder, metrics: Sequence[str]) -> dict[str, Bins]:
    """The bins of these metrics on test images in a run's last evaluated round, by metric, if measured."""
    last = last_evaluated(store.rounds())
    if last is None:
        return {}
    rows = store.pooled(after=last - 1)
    chosen = (pc.field("round") == last) & (pc.field("split") == "test") & pc.field("bin").is_valid()
    rows, found = rows.filter(chosen), dict[str, Bins]()
    for metric in metrics:
        own = rows.filter(pc.field("metric") == metric)
        if own.num_rows:
            found[metric] = np.zeros((BINS, len(COLUMNS)), np.int64)
            np.add.at(found[metric], own["bin"].to_numpy(), np.stack([own[name].to_numpy() for name in COLUMNS], 1))
    return found


def reliability_bins(group: Group, metrics: Sequence[str]) -> dict[str, Bins]:
    """The sum of `bins_of` over the runs of a group."""
    total: dict[str, Bins] = {}
    for run in group.runs.values():
        for metric, bins in bins_of(RunFolder.open(run.path), metrics).items():
            total[metric] = total.get(metric, 0) + bins
    return total


@styled
def reliability_diagrams(found: Mapping[str, Mapping[str, Bins]]) -> Figure:
    """Draw accuracy by confidence: a row per label, a column per metric, above the share of the images in each bin.

    As Guo et al. (ICML 2017, figure 1); the hatched bars are the gaps between accuracy and mean confidence, which the
    expected calibration error (ECE) sums up.
    """
    metrics = list(dict.fromkeys(metric for own in found.values() for metric in own))
    labels = [f"{wrapped(label, 24)}\naccuracy, percent" for label in found]
    left = TICK_ROOM + LINE * max(label.count("\n") + 1 for label in labels)
    width, height = left + (SIDE + GAP) * len(metrics) - GAP + LINE, BELOW + ROW * len(found) + LINE
    figure = Figure(figsize=(width, height))  # fixed margins: a layout engine doubles the time
    for row, (label, own) in enumerate(zip(labels, found.values(), strict=True)):
        bottom, last = BELOW + ROW * (len(found) - 1 - row), row == len(found) - 1
        for column, metric in enumerate(metrics):
            across = left + (SIDE + GAP) * column
            boxes = (across, bottom + SHARES + 0.16, SIDE, SIDE), (across, bottom, SIDE, SHARES)
            upper, lower = (figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes)
            if column == 0:
                upper.set_ylabel(label)
                lower.set_ylabel("images, %")
            if metric not in own:
                upper.set_axis_off()
                lower.set_axis_off()
                continue
            _draw(upper, lower, own[metric])
            if row == 0:
                upper.set_title(METRIC_TITLES[metric])
            if last:
                lower.set_xlabel("confidence, percent")
            lower.tick_params(labelbottom=last)
    handles = [
        Line2D([], [], label="accuracy = confidence", **DIAGONAL),
        Patch(label="accuracy", **ACCURACY),
        Patch(label="gap to the mean confidence", **DIFFERENCE),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False)
    return figure


def _draw(upper: Axes, lower: Axes, bins: Bins) -> None:
    images, correct, confidence = bins.T.astype(float)
    filled = images > 0
    centers = 100 * (np.arange(BINS)[filled] + 0.5) / BINS
    accuracy = 100 * correct[filled] / images[filled]
    expected = 100 * confidence[filled] / (MILLION * images[filled])
    shares = 100 * images[filled] / images.sum()
    ece = 100 * np.abs(correct - confidence / MILLION).sum() / images.sum()
    upper.plot([0, 100], [0, 100], **DIAGONAL)
    upper.add_collection(_bars(centers, np.zeros_like(accuracy), accuracy, ACCURACY))
    upper.add_collection(_bars(centers, accuracy, expected, DIFFERENCE))
    upper.set(xlim=(0, 100), ylim=(0, 100), xticks=TICKS, yticks=TICKS)
    upper.tick_params(labelbottom=False)
    box = {"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round"}
    upper.text(4, 95, f"ECE {ece:.1f}", va="top", fontsize=8, bbox=box)
    lower.add_collection(_bars(centers, np.zeros_like(shares), shares, {"facecolor": "0.6", "edgecolor": "white"}))
    lower.set(xlim=(0, 100), ylim=(0, 1.05 * shares.max()), xticks=TICKS)
    lower.yaxis.set_major_locator(MaxNLocator(2))


def _bars(centers: np.ndarray, starts: np.ndarray, ends: np.ndarray, style: Mapping[str, Any]) -> PolyCollection:
    """Bars as wide as a bin, as one artist: many of them are faster than as many."""
    left, right = centers - 50 / BINS, centers + 50 / BINS
    corners = [(left, starts), (left, ends), (right, ends), (right, starts)]
    return PolyCollection(list(np.transpose(corners, (2, 0, 1))), zorder=1, **style)
