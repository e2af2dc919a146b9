"""The trade-off of the field as a picture: accuracy on a client's own classes against accuracy on unseen ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedpgp.comparison import Comparison

COLORS = ("#4d4d4d", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00")
"""Told apart with any colour vision (Okabe and Ito)."""
MARKERS = "sovDP^X"


def local_against_novel(comparison: Comparison, path: Path) -> None:
    """Local (across) against Novel (up), bars of one standard deviation, contours of HM at the mean Base; a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    rows = [
        (group.label, local, base, novel)
        for group in comparison.groups
        if (local := group.statistic("local"))
        and (base := group.statistic("base"))
        and (novel := group.statistic("novel"))
    ]
    base_mean = float(np.mean([base.mean for _, _, base, _ in rows]))
    low_x, high_x = _range([local.mean for _, local, _, _ in rows])
    low_y, high_y = _range([novel.mean for _, _, _, novel in rows])
    x, y = np.meshgrid(np.linspace(low_x, high_x, 100), np.linspace(low_y, high_y, 100))
    harmonic = 3 / (1 / x + 1 / y + 1 / base_mean)
    contours = axes.contour(x, y, harmonic, levels=8, colors="0.8", linewidths=0.8)
    axes.clabel(contours, fmt="HM %.0f", fontsize=7, colors="0.5")
    for (label, local, _, novel), color, marker in zip(rows, COLORS, MARKERS, strict=False):
        axes.errorbar(
            local.mean, novel.mean, xerr=local.std, yerr=novel.std,
            color=color, marker=marker, markersize=9, capsize=3, linestyle="none", label=label,
        )  # fmt: skip
    axes.set(
        xlim=(low_x, high_x), ylim=(low_y, high_y), xlabel="Local: own classes, test accuracy in percent",
        ylabel="Novel: unseen classes, test accuracy in percent",
    )  # fmt: skip
    axes.set_title(f"Personal or general? (contours: HM at the mean Base of {base_mean:.0f})", fontsize=10)
    axes.legend(loc="best", fontsize=8, framealpha=0.9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = max(3.0, 0.15 * (max(values) - min(values)))
    return max(1.0, min(values) - margin), min(100.0, max(values) + margin)
