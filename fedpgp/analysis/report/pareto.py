"""The Pareto front of a sweep with two metrics: the trials that no other one beats in both, as a table and a figure."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.analysis.report.figures import ReportFigure
from fedpgp.analysis.report.style import COLORS, panel, styled, wrapped
from fedpgp.analysis.report.tables import Cell, Table, mean_std, starred
from fedpgp.federation.metrics import on_test_images
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import SweepFolder

MAX_LABELLED = 12
"""Trials of the front whose labels the figure shows."""


def front_table(folder: SweepFolder) -> Table:
    """The trials of the front, from the best by the first metric to the worst, numbered as in the figure."""
    objectives, results = folder.objectives, folder.results()
    front = folder.front()
    own = [results[trial.id] for trial in front]
    best = (max if objectives.mode == "max" else min)((one.value for one in own if one.value is not None), default=None)
    rows: list[tuple[Cell | str, ...]] = [
        (
            str(number),
            trial.label,
            *map(mean_std, result.measured),
            starred(mean_std(result.value), result.value is not None and result.value == best),
        )
        for number, (trial, result) in enumerate(zip(front, own, strict=True), 1)
    ]
    finished = sum(result.state == "finished" for result in results.values())
    chosen = "chosen on the test images; " * any(map(on_test_images, objectives.metrics))
    return Table(
        f"{folder.path.name}: Pareto front of {' and '.join(objectives.metrics)}; * best by {objectives.title}",
        ("", "trial", *objectives.metrics, objectives.name),
        rows,
        text_columns=2,
        caption=f"{chosen}{len(front)} of {finished} finished trials: no other one is better in both metrics",
    )


@styled
def front_figure(folder: SweepFolder) -> Figure:
    """Draw all finished trials, the front as a line, its trials numbered, and the best one by the sweep's rule."""
    objectives, results = folder.objectives, folder.results()
    labels = {trial.id: trial.label for trial in folder.trials}
    points = {
        result.id: (float(result.values[0] or 0), float(result.values[1] or 0))
        for result in results.values()
        if result.state == "finished" and None not in result.values
    }
    front = [trial.id for trial in folder.front()]
    ranked = [one for one in points if results[one].value is not None]
    best = sorted(ranked, key=lambda one: results[one].value or 0.0, reverse=objectives.mode == "max")[:1]
    figure, axes = panel(8.0, 4.8)
    x, y = zip(*points.values(), strict=True)
    axes.plot(x, y, "o", color="0.7", markersize=6, markeredgecolor="white", label="dominated")
    across, up = zip(*(points[one] for one in front), strict=True)
    axes.plot(across, up, "o-", color=COLORS[2], markersize=8, markeredgecolor="white", label="Pareto front")
    for one in best:
        axes.plot(*points[one], "*", color=COLORS[1], markersize=15, markeredgecolor="white", label="best")
    numbers: dict[tuple[float, float], list[str]] = {}
    for number, one in enumerate(front[:MAX_LABELLED], 1):
        numbers.setdefault(points[one], []).append(str(number))
        axes.plot([], [], " ", label=wrapped(f"{number}: {labels[one]}"))
    for place, own in numbers.items():
        axes.annotate(", ".join(own), place, (6, 5), textcoords="offset points", color=COLORS[2])
    axes.margins(0.08)
    _rule(axes, objectives)
    better = {"max": "larger is better", "min": "smaller is better"}
    names = [f"{metric} ({better[mode]})" for metric, mode in zip(objectives.metrics, objectives.modes, strict=True)]
    axes.set(xlabel=names[0], ylabel=names[1])
    lines = "Grey lines: harmonic mean" if objectives.condition is None else f"Best: {objectives.title}"
    axes.set_title(f"{len(front)} of {len(points)} finished trials are on the front. {lines}")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def of_paths(paths: Iterable[Path]) -> Iterator[tuple[Table, ReportFigure]]:
    """The table and the figure of every sweep with two metrics among these folders that has a finished trial."""
    folders = [SweepFolder.open(path) for path in paths if (path / SweepFolder.marker).is_file()]
    fronts = [folder for folder in folders if folder.front()]
    for number, folder in enumerate(fronts, 1):
        suffix = f"-{number}" if len(fronts) > 1 else ""
        caption = "Numbers are those of the table. Each trial on the line trades one metric for the other."
        title = f"Pareto front, {folder.path.name}"
        yield front_table(folder), ReportFigure(f"pareto{suffix}", title, caption, front_figure(folder))


def _rule(axes: Axes, objectives: Objectives) -> None:
    """Draw lines of equal harmonic mean, or the limit of the condition."""
    condition = objectives.condition
    if condition is not None:
        line = axes.axvline if condition.other == objectives.metrics[0] else axes.axhline
        line(condition.limit, color="0.4", linestyle="--", linewidth=1)
        return
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    if min(left, low) > 0:
        x, y = np.meshgrid(np.linspace(left, right, 100), np.linspace(low, high, 100))
        lines = axes.contour(x, y, 2 / (1 / x + 1 / y), locator=MaxNLocator(6), colors="0.75", linewidths=0.8)
        axes.clabel(lines, fontsize=8, colors="0.4")
