"""Figures of accuracy and loss over rounds, and of accuracy over clients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.loading import Curve
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.style import COLORS, DASHES, HATCHES, blank, item_style, styled, wrapped
from fedpgp.federation.metrics import METRICS, RoundRow

MAX_POINTS = 2000
"""Figures with more clients show boxes without points."""
MAX_LABELS = 14
MAX_MARKERS = 30
DPI = 80

Line = tuple[list[int], list[float]]


@styled
def convergence(curves: Mapping[str, Curve], metric: str) -> Figure:
    """Test accuracy by label over rounds (left) and over megabytes sent (right); bands of one standard deviation."""
    figure = blank(9.0, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (label, curve) in enumerate(curves.items()):
        style = item_style(number) | {"markersize": 4, "markevery": max(1, len(curve.rounds) // 8), "linewidth": 1.4}
        low, high = np.subtract(curve.mean, curve.std), np.add(curve.mean, curve.std)
        if list(curve.rounds) == [0]:  # an untrained method is a level
            for axes in (left, right):
                axes.axhline(
                    curve.mean[0], label=wrapped(label) if axes is left else None, color=style["color"], linestyle=":"
                )
            continue
        left.plot(curve.rounds, curve.mean, label=wrapped(label), **style)
        left.fill_between(curve.rounds, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if max(curve.megabytes) > 0:
            right.plot(curve.megabytes, curve.mean, **style)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="round", ylabel=f"{METRIC_TITLES[metric]}, test accuracy in percent")
    right.set(xlabel="megabytes sent up and down so far", xscale="log" if len(right.lines) else "linear")
    silent = [label for label, own in curves.items() if list(own.rounds) != [0] and not max(own.megabytes) > 0]
    if silent:
        right.set_title(f"sends nothing: {', '.join(silent)}", fontsize=8, color="0.4")
    figure.legend(loc="outside lower center", ncols=min(4, len(curves)), frameon=False, handlelength=3)
    return figure


@styled
def client_distribution(accuracies: Mapping[str, Sequence[float]], metric: str) -> Figure:
    """Accuracy of single clients by label: points, quartiles as a box, whiskers to the last within 1.5 boxes."""
    figure = blank(max(5.0, 1.5 + 0.8 * len(accuracies)), 3.8)
    axes = figure.subplots()
    axes.grid(visible=False, axis="x")
    values = list(accuracies.values())
    pointwise = sum(map(len, values)) <= MAX_POINTS
    drawn = axes.boxplot(
        values, widths=0.6, patch_artist=True, showfliers=not pointwise, medianprops={"color": "black"}
    )
    for number, box in enumerate(drawn["boxes"]):
        box.set(facecolor=COLORS[number % len(COLORS)], alpha=0.55, hatch=HATCHES[number % len(HATCHES)])
    for number, own in enumerate(values if pointwise else (), start=1):
        spots = number + 0.36 * (np.arange(len(own)) / max(1, len(own) - 1) - 0.5)
        axes.plot(spots, own, "o", color="black", markersize=2.5, alpha=0.6)
    labels = [wrapped(label, 24) for label in accuracies]
    slant: dict[str, Any] = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 3 else {}
    axes.set_xticks(range(1, len(labels) + 1), labels, **slant)
    axes.set(ylabel=f"{METRIC_TITLES[metric]}, test accuracy in percent")
    axes.set_title("A point per client and run; boxes hold the middle half")
    return figure


def curves_of_run(rounds: Sequence[RoundRow], path: Path) -> bool:
    """Draw accuracy (test solid, validation dashed) and mean training loss with its parts by round as PNG.

    Returns:
        Whether there was anything to draw.
    """
    lines = {f"{split}/{metric}": _line(rounds, f"{split}/{metric}") for metric in METRICS for split in ("test", "val")}
    lines = {name: line for name, line in lines.items() if line[0]}
    if lines:
        losses = sorted({name for row in rounds for name in row.metrics if name.startswith("train/")} - {"train/loss"})
        _save(_accuracy_and_loss(lines, {name: _line(rounds, name) for name in ("train/loss", *losses)}), path)
    return bool(lines)


def curves_of_several(runs: Mapping[str, Sequence[RoundRow]], metric: str, path: Path) -> bool:
    """Draw one metric by round with a line for each run as PNG.

    Args:
        runs: rounds by label; the legend names the first `MAX_LABELS`.

    Returns:
        Whether there was anything to draw.
    """
    lines = {label: _line(rounds, metric) for label, rounds in runs.items()}
    lines = {label: line for label, line in lines.items() if line[0]}
    if lines:
        _save(_side_by_side(lines, metric), path, bbox_inches="tight")
    return bool(lines)


@styled
def _accuracy_and_loss(lines: Mapping[str, Line], losses: Mapping[str, Line]) -> Figure:
    figure = Figure(figsize=(9.6, 3.8))  # fixed margins: a layout engine doubles the time
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12, top=0.97, wspace=0.15)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    metrics = list(dict.fromkeys(name.partition("/")[2] for name in lines))
    for name, line in lines.items():
        split, _, metric = name.partition("/")
        color = COLORS[metrics.index(metric) % len(COLORS)]
        label = metric if split == "test" or f"test/{metric}" not in lines else None
        _plot(left, line, color=color, label=label, linestyle="-" if split == "test" else "--")
    left.plot([], [], "k--", label="validation")
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
    figure.savefig(path, dpi=DPI, metadata={"Software": None}, **options)
