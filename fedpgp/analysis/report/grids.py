"""Heat maps: two settings against each other, held-out domains against clients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedpgp.analysis.comparison import Group
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.style import SEQUENTIAL, annotate, blank, styled


@styled
def settings_heat_map(groups: Sequence[Group], down: str, across: str, metric: str) -> Figure:
    """Draw mean test accuracy over seeds for two settings (dotted keys), for example rank and shots.

    Groups that share a cell are averaged.
    """
    rows, columns = (_values(groups, key) for key in (down, across))
    cells: dict[tuple[int, int], list[float]] = {}
    for group in groups:
        if found := group.statistic(metric):
            place = rows.index(group.settings.get(down)), columns.index(group.settings.get(across))
            cells.setdefault(place, []).append(found.mean)
    grid = np.full((len(rows), len(columns)), np.nan)
    for place, values in cells.items():
        grid[place] = np.mean(values)
    title = f"{METRIC_TITLES[metric]}, test accuracy in percent, mean over seeds"
    return _heat_map(grid, list(map(str, rows)), list(map(str, columns)), _short(down), _short(across), title)


@styled
def held_out_matrix(accuracies: Mapping[str, Mapping[str, float]], label: str) -> Figure:
    """Draw test accuracy of each client's model (across) on each held-out domain (down), and the mean of each row.

    Args:
        accuracies: by held-out domain and client; a client that has the domain is absent.
    """
    names = dict.fromkeys(name for row in accuracies.values() for name in row)
    clients = list(
        {**{domain: None for domain in accuracies if domain in names}, **names}
    )  # rows and columns in one order
    grid = np.array([[row.get(name, np.nan) for name in clients] for row in accuracies.values()])
    grid = np.column_stack([grid, np.nanmean(grid, axis=1)])
    title = f"{label}: test accuracy in percent on the held-out domain"
    return _heat_map(grid, list(accuracies), [*clients, "mean"], "held out", "model of the client of", title)


def is_numeric(groups: Sequence[Group], key: str) -> bool:
    """Whether a setting is a number in all groups."""
    return all(isinstance(group.settings.get(key), int | float) for group in groups)


def _heat_map(
    grid: np.ndarray, rows: Sequence[str], columns: Sequence[str], down: str, across: str, title: str
) -> Figure:
    figure = blank(2.6 + 0.75 * len(columns), 1.6 + 0.42 * len(rows))
    axes = figure.subplots()
    axes.grid(visible=False)
    shown = axes.imshow(grid, cmap=SEQUENTIAL, aspect="auto")
    annotate(axes, shown, grid)
    axes.set_xticks(range(len(columns)), columns, rotation=30 if max(map(len, columns)) > 8 else 0)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=across, ylabel=down)
    axes.set_title(title, loc="left")
    figure.colorbar(shown, label="percent")
    return figure


def _values(groups: Sequence[Group], key: str) -> list[Any]:
    """The distinct values of a setting: numbers ascending, others in order of appearance."""
    values = list(dict.fromkeys(group.settings.get(key) for group in groups))
    return sorted(values) if is_numeric(groups, key) else values


def _short(key: str) -> str:
    return key.removeprefix("method.").removeprefix("protocol.").removeprefix("federation.")
