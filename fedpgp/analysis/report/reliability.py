"""Reliability diagrams: how often answers of a confidence are correct, from the exact counts of runs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpgp.analysis.comparison import METRIC_TITLES, Group
from fedpgp.analysis.report.style import COLORS, blank, styled, wrapped
from fedpgp.federation.metrics import last_evaluated
from fedpgp.federation.pooled_counts import BINS, MILLION
from fedpgp.storage.run_folder import RunFolder

Bins = np.ndarray
"""(`BINS`, 3) images, correct ones, sum of the confidence in millionths."""
COLUMNS = ("images", "correct", "confidence")
SIDE = 2.5
"""Inches of a panel."""


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
    figure = blank(0.6 + SIDE * len(metrics), 0.5 + (SIDE + 0.6) * len(found))
    heights = [1.0, 0.28] * len(found)
    grid = figure.subplots(2 * len(found), len(metrics), squeeze=False, sharex=True, height_ratios=heights)
    for row, (label, own) in enumerate(found.items()):
        for column, metric in enumerate(metrics):
            upper, lower = grid[2 * row, column], grid[2 * row + 1, column]
            if metric not in own:
                upper.set_axis_off()
                lower.set_axis_off()
                continue
            _draw(upper, lower, own[metric])
            if row == 0:
                upper.set_title(METRIC_TITLES[metric])
            if row == len(found) - 1:
                lower.set_xlabel("confidence, percent")
        grid[2 * row, 0].set_ylabel(f"{wrapped(label, 24)}\naccuracy, percent")
        grid[2 * row + 1, 0].set_ylabel("images, %")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw(upper: Axes, lower: Axes, bins: Bins) -> None:
    images, correct, confidence = bins.T.astype(float)
    filled = images > 0
    centers, width = 100 * (np.arange(BINS)[filled] + 0.5) / BINS, 100 / BINS
    accuracy = 100 * correct[filled] / images[filled]
    expected = 100 * confidence[filled] / (MILLION * images[filled])
    ece = 100 * np.abs(correct - confidence / MILLION).sum() / images.sum()
    upper.plot([0, 100], [0, 100], color="0.4", linestyle="--", linewidth=1, label="accuracy = confidence")
    upper.bar(centers, accuracy, width, color=COLORS[2], edgecolor="white", label="accuracy")
    upper.bar(
        centers, expected - accuracy, width, bottom=accuracy, fill=False, edgecolor=COLORS[1], hatch="////",
        linewidth=0.8, label="gap to the mean confidence",
    )  # fmt: skip
    upper.set(xlim=(0, 100), ylim=(0, 100))
    box = {"facecolor": "white", "edgecolor": "0.8", "boxstyle": "round"}
    upper.text(4, 95, f"ECE {ece:.1f}", va="top", fontsize=8, bbox=box)
    lower.bar(centers, 100 * images[filled] / images.sum(), width, color="0.6", edgecolor="white")
    lower.set_ylim(0, None)
