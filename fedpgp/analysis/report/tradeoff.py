"""Figures of the trade-off between a client's own classes and unseen ones."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.comparison import Group
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.style import COLORS, HATCHES, blank, item_style, styled, wrapped

BARS = ("local", "base", "novel", "hm", "all", "held_out")


@styled
def local_against_novel(groups: Sequence[Group]) -> Figure:
    """Draw Local (across) against Novel (up) with bars of one standard deviation and contours of their harmonic mean.

    HM also depends on Base, so the legend has it.
    """
    rows = [
        (number, f"{wrapped(group.label)}  {hm.mean:.1f}", local, novel)
        for number, group in enumerate(groups)
        if (local := group.statistic("local")) and (novel := group.statistic("novel")) and (hm := group.statistic("hm"))
    ]
    low_x, high_x = _range([local.mean for _, _, local, _ in rows])
    low_y, high_y = _range([novel.mean for *_, novel in rows])
    figure = blank(8.0, 4.8)
    axes = figure.subplots()
    axes.grid(visible=False)
    x, y = np.meshgrid(np.linspace(low_x, high_x, 100), np.linspace(low_y, high_y, 100))
    whole = MaxNLocator(8, integer=True)
    contours = axes.contour(x, y, 2 / (1 / x + 1 / y), locator=whole, colors="0.75", linewidths=0.8)
    axes.clabel(contours, fmt="%.0f", fontsize=8, colors="0.4")
    points = [
        axes.errorbar(
            local.mean, novel.mean, xerr=local.std, yerr=novel.std, capsize=3, capthick=1.2, markersize=10,
            markeredgecolor="white", markeredgewidth=0.7, **{**item_style(number), "linestyle": "none"},
        )[0]
        for number, _, local, novel in rows
    ]  # fmt: skip
    axes.set(
        xlim=(low_x, high_x), ylim=(low_y, high_y), xlabel="Local: own classes, test accuracy in percent",
        ylabel="Novel: unseen classes, test accuracy in percent",
    )  # fmt: skip
    axes.set_title("Personal or general? Lines: harmonic mean of Local and Novel")
    labels = [label for _, label, *_ in rows]
    figure.legend(points, labels, loc="outside right upper", title="HM of Local, Base, Novel", frameon=False)
    return figure


@styled
def bars(groups: Sequence[Group], metrics: Sequence[str]) -> Figure:
    """Draw test accuracy by metric: a bar per group, with one standard deviation."""
    figure = blank(max(6.4, 0.9 + 0.24 * len(groups) * len(metrics)), 3.8)
    axes = figure.subplots()
    axes.grid(visible=False, axis="x")
    width = 0.84 / len(groups)
    for number, group in enumerate(groups):
        found = [group.statistic(metric) for metric in metrics]
        axes.bar(
            [column + (number - (len(groups) - 1) / 2) * width for column in range(len(metrics))],
            [one.mean if one else np.nan for one in found], width,
            yerr=[(one.std or 0.0) if one else 0.0 for one in found], label=wrapped(group.label),
            color=COLORS[number % len(COLORS)], hatch=HATCHES[number % len(HATCHES)], edgecolor="white",
            error_kw={"ecolor": "0.2", "elinewidth": 0.8, "capsize": 2},
        )  # fmt: skip
    axes.set_xticks(range(len(metrics)), [METRIC_TITLES[metric] for metric in metrics])
    axes.set(ylim=(0, 100), ylabel="test accuracy in percent")
    axes.set_title("Mean over clients; bars of one standard deviation over seeds")
    figure.legend(loc="outside lower center", ncols=min(4, len(groups)), frameon=False)
    return figure


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = max(3.0, 0.15 * (max(values) - min(values)))
    return max(1.0, min(values) - margin), min(100.0, max(values) + margin)
