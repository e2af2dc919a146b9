"""Rounds as curves: accuracies and loss of one run, or one metric of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedpgp.evaluation import METRICS
from fedpgp.records import RoundRow

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Told apart with any colour vision (Okabe and Ito)."""
MOST_LABELLED = 14


def curves_of_run(rounds: Sequence[RoundRow], path: Path) -> bool:
    """Accuracy (test solid, validation dashed) and mean training loss by round, as PNG.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    names = [
        metric
        for metric in METRICS
        if any(f"{split}/{metric}" in row.metrics for row in rounds for split in ("test", "val"))
    ]
    if not names:
        return False
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    accuracy, loss = figure.subplots(1, 2, width_ratios=(2, 1))
    for number, metric in enumerate(names):
        color = COLORS[number % len(COLORS)]
        for split, style in (("test", "-"), ("val", "--")):
            across, up = _series(rounds, f"{split}/{metric}")
            if across:
                label = metric if split == "test" else None
                accuracy.plot(across, up, style, color=color, label=label, marker="." if len(across) < 30 else None)
    accuracy.plot([], [], "k--", label="validation")
    accuracy.set(xlabel="round", ylabel="accuracy in percent, mean over clients")
    accuracy.legend(fontsize=8, ncols=2)
    loss.plot(*_series(rounds, "train/loss"), color=COLORS[-1])
    loss.set(xlabel="round", ylabel="training loss, mean over clients")
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    return True


def curves_of_several(runs: Mapping[str, Sequence[RoundRow]], metric: str, path: Path) -> bool:
    """One metric by round, a line for each run, as PNG.

    Args:
        runs: rounds by label; the legend names the first `MOST_LABELLED`.

    Returns:
        Whether there was anything to draw.
    """
    from matplotlib.figure import Figure

    lines = {label: _series(rounds, metric) for label, rounds in runs.items()}
    lines = {label: line for label, line in lines.items() if line[0]}
    if not lines:
        return False
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    for number, (label, (across, up)) in enumerate(lines.items()):
        shown = label if number < MOST_LABELLED else None
        style = ("-", "--", ":", "-.")[number // len(COLORS) % 4]
        axes.plot(
            across, up, style, color=COLORS[number % len(COLORS)], label=shown, marker="." if len(across) < 2 else None
        )
    axes.set(xlabel="round", ylabel=f"{metric}, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    return True


def _series(rounds: Sequence[RoundRow], metric: str) -> tuple[list[int], list[float]]:
    measured = [row for row in rounds if metric in row.metrics]
    return [row.round for row in measured], [row.metrics[metric] for row in measured]
