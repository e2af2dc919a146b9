"""How accuracy comes about, and to whom, as pictures: over rounds and bytes, and over clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.report.curve_data import Curve
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.style import COLORS, HATCHES, blank, look, styled

MOST_POINTS = 2000
"""Clients drawn as points; of more, the boxes alone are drawn."""


@styled
def convergence(curves: Mapping[str, Curve], metric: str) -> Figure:
    """Test accuracy by label over rounds (left) and over megabytes sent (right); bands of one standard deviation."""
    figure = blank(9.0, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (label, curve) in enumerate(curves.items()):
        style = look(number) | {"markersize": 4, "markevery": max(1, len(curve.rounds) // 8), "linewidth": 1.4}
        low, high = np.subtract(curve.mean, curve.spread), np.add(curve.mean, curve.spread)
        if list(curve.rounds) == [0]:  # nothing is trained
            for axes in (left, right):
                axes.axhline(curve.mean[0], label=label if axes is left else None, color=style["color"], linestyle=":")
            continue
        left.plot(curve.rounds, curve.mean, label=label, **style)
        left.fill_between(curve.rounds, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if max(curve.megabytes) > 0:
            right.plot(curve.megabytes, curve.mean, **style)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="round", ylabel=f"{METRIC_TITLES[metric]}, test accuracy in percent")
    right.set(xlabel="megabytes sent up and down until then", xscale="log" if len(right.lines) else "linear")
    silent = [label for label, own in curves.items() if list(own.rounds) != [0] and not max(own.megabytes) > 0]
    if silent:
        right.set_title(f"sends nothing: {', '.join(silent)}", fontsize=8, color="0.4")
    figure.legend(loc="outside lower center", ncols=min(4, len(curves)), frameon=False, handlelength=3)
    return figure


@styled
def client_distribution(accuracies: Mapping[str, Sequence[float]], metric: str) -> Figure:
    """Accuracy of single clients by label: each a point, quartiles as a box, whiskers to the last within 1.5 boxes."""
    figure = blank(max(5.0, 1.5 + 0.8 * len(accuracies)), 3.8)
    axes = figure.subplots()
    axes.grid(visible=False, axis="x")
    values = list(accuracies.values())
    drawn = axes.boxplot(
        values, widths=0.6, patch_artist=True, showfliers=sum(map(len, values)) > MOST_POINTS,
        medianprops={"color": "black"},
    )  # fmt: skip
    for number, box in enumerate(drawn["boxes"]):
        box.set(facecolor=COLORS[number % len(COLORS)], alpha=0.55, hatch=HATCHES[number % len(HATCHES)])
    if sum(map(len, values)) <= MOST_POINTS:
        for number, own in enumerate(values, start=1):
            spots = number + 0.36 * (np.arange(len(own)) / max(1, len(own) - 1) - 0.5)
            axes.plot(spots, own, "o", color="black", markersize=2.5, alpha=0.6)
    labels = list(accuracies)
    slant: dict[str, Any] = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 3 else {}
    axes.set_xticks(range(1, len(labels) + 1), labels, **slant)
    axes.set(ylabel=f"{METRIC_TITLES[metric]}, test accuracy in percent")
    axes.set_title("A point per client and run; boxes hold the middle half")
    return figure
