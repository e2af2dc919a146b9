"""Figures of a comparison: trade-off, metrics, rounds, clients, heat maps, and learned prompts."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.comparison import METRIC_TITLES, Group, repeated_over
from fedpgp.analysis.loading import Curve
from fedpgp.analysis.report.style import COLORS, annotate, area_style, blank, item_style, panel, short, styled, wrapped

MAX_POINTS = 2000
"""Figures with more clients show boxes without points."""
MAX_NUMBERS = 12
"""Figures with more clients have no numbers in the cells."""
MAX_TICKS = 40
WIDE = 10
"""Ratio of the largest to the smallest value of a setting from which on its axis is logarithmic."""


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
    figure, axes = panel(8.0, 4.8)
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
    figure, axes = panel(max(6.4, 0.9 + 0.24 * len(groups) * len(metrics)), 3.8, horizontal_grid=True)
    width = 0.84 / len(groups)
    for number, group in enumerate(groups):
        found = [group.statistic(metric) for metric in metrics]
        axes.bar(
            [column + (number - (len(groups) - 1) / 2) * width for column in range(len(metrics))],
            [one.mean if one else np.nan for one in found], width,
            yerr=[(one.std or 0.0) if one else 0.0 for one in found], label=wrapped(group.label),
            edgecolor="white", **area_style(number),
            error_kw={"ecolor": "0.2", "elinewidth": 0.8, "capsize": 2},
        )  # fmt: skip
    axes.set_xticks(range(len(metrics)), [METRIC_TITLES[metric] for metric in metrics])
    axes.set(ylim=(0, 100), ylabel="test accuracy in percent")
    axes.set_title(f"Mean over clients; bars of one standard deviation over {repeated_over(groups)}")
    figure.legend(loc="outside lower center", ncols=min(4, len(groups)), frameon=False)
    return figure


@styled
def convergence(curves: Mapping[str, Curve], metric: str) -> Figure:
    """Test accuracy by label over rounds (left) and over megabytes sent (right); bands of one standard deviation."""
    figure = blank(9.0, 3.8)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (label, curve) in enumerate(curves.items()):
        style = item_style(number) | {"markersize": 4, "markevery": max(1, len(curve.rounds) // 8), "linewidth": 1.4}
        low, high = np.subtract(curve.mean, curve.std), np.add(curve.mean, curve.std)
        if list(curve.rounds) == [0]:  # an untrained method is a level
            left.axhline(curve.mean[0], color=style["color"], linestyle=":", label=wrapped(label))
            right.axhline(curve.mean[0], color=style["color"], linestyle=":")
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
    figure, axes = panel(max(5.0, 1.5 + 0.8 * len(accuracies)), 3.8, horizontal_grid=True)
    values = list(accuracies.values())
    pointwise = sum(map(len, values)) <= MAX_POINTS
    drawn = axes.boxplot(
        values, widths=0.6, patch_artist=True, showfliers=not pointwise, medianprops={"color": "black"}
    )
    for number, box in enumerate(drawn["boxes"]):
        box.set(alpha=0.55, **area_style(number))
    for number, own in enumerate(values if pointwise else (), start=1):
        spots = number + 0.36 * (np.arange(len(own)) / max(1, len(own) - 1) - 0.5)
        axes.plot(spots, own, "o", color="black", markersize=2.5, alpha=0.6)
    labels = [wrapped(label, 24) for label in accuracies]
    slant: dict[str, Any] = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"} if len(labels) > 3 else {}
    axes.set_xticks(range(1, len(labels) + 1), labels, **slant)
    axes.set(ylabel=f"{METRIC_TITLES[metric]}, test accuracy in percent")
    axes.set_title("A point per client and run; boxes hold the middle half")
    return figure


@styled
def settings_heat_map(groups: Sequence[Group], down: str, across: str, metric: str) -> Figure:
    """Draw mean test accuracy over repetitions and groups for each pair of values of two settings (dotted keys)."""
    rows, columns = (values_of(groups, key) for key in (down, across))
    cells: dict[tuple[int, int], list[float]] = {}
    for group in groups:
        if found := group.statistic(metric):
            place = rows.index(group.settings.get(down)), columns.index(group.settings.get(across))
            cells.setdefault(place, []).append(found.mean)
    grid = np.full((len(rows), len(columns)), np.nan)
    for place, values in cells.items():
        grid[place] = np.mean(values)
    what = f"{METRIC_TITLES[metric]}, test accuracy in percent, mean over {repeated_over(groups)}"
    title = f"{groups[0].settings['method.name']}: {what}"
    names_down, names_across = ([_value_name(value) for value in values] for values in (rows, columns))
    return _heat_map(grid, names_down, names_across, _setting_name(down), _setting_name(across), title)


@styled
def against_setting(groups: Sequence[Group], key: str, metric: str) -> Figure:
    """Draw test accuracy against a numeric setting: a line per method, with bars of one standard deviation.

    Groups without the setting are a level, their mean.
    """
    figure, axes = panel(6.4, 3.8, horizontal_grid=True)
    points: dict[str, list[tuple[float, float, float]]] = {}
    levels: dict[str, list[float]] = {}
    for group in groups:
        method, value, found = str(group.settings["method.name"]), group.settings.get(key), group.statistic(metric)
        if found is None:
            continue
        if value is None:
            levels.setdefault(method, []).append(found.mean)
        else:
            points.setdefault(method, []).append((float(value), found.mean, found.std or 0.0))
    for number, (method, own) in enumerate(points.items()):
        style = item_style(number) | {"markersize": 5, "linewidth": 1.4}
        x, y, error = zip(*sorted(own), strict=True)
        axes.errorbar(x, y, yerr=error, capsize=3, label=method, **style)
        if method in levels:
            without = f"{method}, without"
            axes.axhline(fmean(levels[method]), color=style["color"], linestyle=":", linewidth=1.2, label=without)
    values = [x for own in points.values() for x, *_ in own]
    if min(values) > 0 and max(values) / min(values) > WIDE:
        axes.set_xscale("log")
        axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
        axes.minorticks_off()
    axes.set(xlabel=_setting_name(key), ylabel=f"{METRIC_TITLES[metric]}, test accuracy in percent")
    axes.set_title(f"Mean over {repeated_over(groups)}; bars of one standard deviation")
    figure.legend(loc="outside lower center", ncols=min(4, 2 * len(points)), frameon=False, handlelength=3)
    return figure


@styled
def held_out_matrix(accuracies: Mapping[str, Mapping[str, float]], label: str) -> Figure:
    """Draw test accuracy of each client's model (across) on each held-out domain (down), and the mean of each row.

    Args:
        accuracies: by held-out domain and client; a client that has the domain is absent.
    """
    names = dict.fromkeys(name for row in accuracies.values() for name in row)
    # domains that are clients first, so that rows and columns have one order
    clients = [*(one for one in accuracies if one in names), *(one for one in names if one not in accuracies)]
    grid = np.array([[row.get(name, np.nan) for name in clients] for row in accuracies.values()])
    grid = np.column_stack([grid, np.nanmean(grid, axis=1)])
    title = f"{label}: test accuracy in percent on the held-out domain"
    return _heat_map(grid, list(accuracies), [*clients, "mean"], "held out", "model of the client of", title)


@styled
def spectra(values: np.ndarray, label: str) -> Figure:
    """Draw the singular values (K, min(L, D)) of each personal part, descending, and its share of energy by rank."""
    energy = np.cumsum(values**2, axis=1)
    total = energy[:, -1:]
    share = 100 * np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)
    ranks = np.arange(1, values.shape[1] + 1)
    figure = blank(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, numbers in ((left, values), (right, share)):
        axes.plot(ranks, numbers.T, color="0.75", linewidth=0.7)
        axes.plot(ranks, np.median(numbers, axis=0), "o-", color=COLORS[2], markersize=4, label="median of the clients")
        axes.set_xlabel("number of the singular value" if axes is left else "rank")
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set(ylabel="singular value", ylim=(0, None))
    right.set(ylabel="energy up to this rank, percent", ylim=(0, 103))
    right.axhline(90, color="0.5", linestyle=":", linewidth=1)
    left.legend()
    figure.suptitle(f"{label}: personal parts of the prompt", fontsize=10)
    return figure


@styled
def similarity(cosines: np.ndarray, names: Sequence[str], label: str) -> Figure:
    """Draw cosine similarities (K, K) of the personal parts."""
    labels = [short(name) for name in names]
    side = min(10.0, max(2.2, 1.4 + 0.08 * max(map(len, labels))) + 0.42 * len(names))
    figure, axes = panel(side + 0.8, side)
    shown = axes.imshow(cosines, cmap="PuOr", vmin=-1, vmax=1)
    if len(names) <= MAX_NUMBERS:
        annotate(axes, shown, cosines, "{:.2f}")
    step = -(-len(names) // MAX_TICKS)
    axes.set_xticks(range(0, len(names), step), labels[::step], rotation=90)
    axes.set_yticks(range(0, len(names), step), labels[::step])
    axes.set_title(f"{label}: cosine similarity", loc="left")
    figure.colorbar(shown, shrink=0.8)
    return figure


@styled
def nearest_words(found: Sequence[Sequence[tuple[str, float]]], label: str) -> Figure:
    """Draw for each context token (down) its nearest words with their Euclidean distances."""
    grid = np.array([[distance for _, distance in row] for row in found])
    figure, axes = panel(1.6 + 1.35 * grid.shape[1], 1.2 + 0.34 * len(grid))
    axes.imshow(grid, cmap="Greys", aspect="auto", vmin=0, vmax=2 * float(grid.max()))
    for row, words in enumerate(found):
        for column, (word, distance) in enumerate(words):
            axes.text(column, row, f"{word}  {distance:.2f}", ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(grid)), [f"token {number}" for number in range(1, len(grid) + 1)])
    axes.set_xticks(range(grid.shape[1]), ["nearest", *(f"{number}." for number in range(2, grid.shape[1] + 1))])
    axes.set_title(f"{label}: words near the learned context", loc="left")
    axes.set_xlabel("distance of embeddings; a context far from all words is common, and then they mean little")
    return figure


def is_numeric(groups: Sequence[Group], key: str) -> bool:
    """Whether a setting is a number in all groups."""
    return all(isinstance(group.settings.get(key), int | float) for group in groups)


def values_of(groups: Sequence[Group], key: str) -> list[Any]:
    """The values of a setting: numbers by size, others by first appearance; None for groups without it."""
    values = list(dict.fromkeys(group.settings.get(key) for group in groups))
    return sorted(values) if is_numeric(groups, key) else values


def _value_name(value: Any) -> str:
    return "none" if value is None else str(value)


def _setting_name(key: str) -> str:
    """A dotted key without its section."""
    return key.partition(".")[2] or key


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = max(3.0, 0.15 * (max(values) - min(values)))
    return max(1.0, min(values) - margin), min(100.0, max(values) + margin)


def _heat_map(
    grid: np.ndarray, rows: Sequence[str], columns: Sequence[str], down: str, across: str, title: str
) -> Figure:
    figure, axes = panel(2.6 + 0.75 * len(columns), 1.6 + 0.42 * len(rows))
    shown = axes.imshow(grid, cmap="cividis", aspect="auto")
    annotate(axes, shown, grid)
    axes.set_xticks(range(len(columns)), columns, rotation=30 if max(map(len, columns)) > 8 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=across, ylabel=down)
    axes.set_title(title, loc="left")
    figure.colorbar(shown, label="percent")
    return figure
