"""Rounds as curves: accuracies and loss of one run, or one metric of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fedpgp.analysis.report.style import COLORS, DASHES, styled
from fedpgp.federation.metrics import METRICS
from fedpgp.federation.records import RoundRow

MOST_LABELLED = 14
MOST_DOTS = 30
DPI = 80

Line = tuple[list[int], list[float]]


def curves_of_run(rounds: Sequence[RoundRow], path: Path) -> bool:
    """Accuracy (test solid, validation dashed) and mean training loss with its parts by round, as PNG.

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
    """One metric by round, a line for each run, as PNG.

    Args:
        runs: rounds by label; the legend names the first `MOST_LABELLED`.

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
    figure = Figure(figsize=(9.6, 3.8))  # measured by hand: a layout engine takes as long as all the rest
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.12, top=0.97, wspace=0.15)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    metrics = list(dict.fromkeys(name.partition("/")[2] for name in lines))
    for name, line in lines.items():
        split, _, metric = name.partition("/")
        color = COLORS[metrics.index(metric) % len(COLORS)]
        shown = metric if split == "test" or f"test/{metric}" not in lines else None
        left.plot(*line, "-" if split == "test" else "--", color=color, label=shown, marker=_dots(line))
    left.plot([], [], "k--", label="validation")
    left.set(xlabel="round", ylabel="accuracy in percent, mean over clients")
    left.legend(ncols=2)
    for number, (name, line) in enumerate(losses.items()):
        color = COLORS[number % len(COLORS)]
        right.plot(*line, color=color, label=name.removeprefix("train/"), marker=_dots(line))
    if len(losses) > 1:
        right.legend()
    right.set(xlabel="round", ylabel="training loss, mean over clients")
    for axes in (left, right):
        axes.locator_params(axis="x", integer=True)
    return figure


@styled
def _side_by_side(lines: Mapping[str, Line], metric: str) -> Figure:
    figure = Figure(figsize=(8.0, 4.4))  # grown when it is saved: to the legend beside it
    axes = figure.subplots()
    for number, (label, line) in enumerate(lines.items()):
        dashes = DASHES[number // len(COLORS) % len(DASHES)]
        shown = label if number < MOST_LABELLED else None
        axes.plot(*line, linestyle=dashes, color=COLORS[number % len(COLORS)], label=shown, marker=_dots(line))
    axes.set(xlabel="round", ylabel=f"{metric} in percent")
    axes.locator_params(axis="x", integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _dots(line: Line) -> str | None:
    return "." if len(line[0]) < MOST_DOTS else None


def _line(rounds: Sequence[RoundRow], metric: str) -> Line:
    measured = [row for row in rounds if metric in row.metrics]
    return [row.round for row in measured], [row.metrics[metric] for row in measured]


def _save(figure: Figure, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None}, **options)
