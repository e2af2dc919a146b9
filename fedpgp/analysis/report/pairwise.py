"""Two runs against each other: settings that differ, metrics, and what each client gains or loses."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group

from fedpgp.analysis.comparison import READINGS, Run
from fedpgp.analysis.report.curve_data import client_accuracies
from fedpgp.analysis.report.labels import METRIC_TITLES, READING_TITLES
from fedpgp.analysis.report.tables import Cell, Sheet, in_terminal
from fedpgp.config import differing
from fedpgp.federation.metrics import METRICS

PER_CLIENT = ("local", "held_out", "all", "base", "novel")
MOST_CLIENTS = 40


def side_by_side(first: Run, second: Run, notes: Sequence[str] = ()) -> Group:
    """All tables; A is the first run, B the second, differences are B - A."""
    tables = [settings(first, second), metrics(first, second), clients(first, second)]
    names = [f"A: {first.path.name} ({first.state})", f"B: {second.path.name} ({second.state})"]
    return in_terminal([table for table in tables if table.rows], [*names, *(f"mark: {note}" for note in notes)])


def settings(first: Run, second: Run) -> Sheet:
    """The settings that differ, seed, held-out domain and version among them."""
    trees = [
        {"seed": run.fold.seed, "protocol.held_out": run.fold.held_out, **run.settings, "fedpgp": run.version}
        for run in (first, second)
    ]
    rows = [(key, *("-" if key not in tree else str(tree[key]) for tree in trees)) for key in differing(trees)]
    return Sheet("Settings that differ", ("", "A", "B"), _cells(rows), names=3)


def metrics(first: Run, second: Run) -> Sheet:
    """Every metric that one of them measured: after the last round, and the difference in the other readings."""
    rows = []
    for split in ("val", "test"):
        for metric in METRICS:
            a, b = (run.metrics.get(f"{split}/{metric}", {}) for run in (first, second))
            if a or b:
                gains = [_gain(a.get(read), b.get(read)) for read in READINGS]
                rows.append((split, METRIC_TITLES[metric], _number(a.get("last")), _number(b.get("last")), *gains))
    others = [f"{READING_TITLES[read]}, B - A" for read in READINGS[1:]]
    return Sheet("Accuracy in percent", ("split", "metric", "A", "B", "B - A", *others), _cells(rows), names=2)


def clients(first: Run, second: Run) -> Sheet:
    """Test accuracy of each client, the largest gain or loss first."""
    measured = {metric: [client_accuracies(run, metric) for run in (first, second)] for metric in PER_CLIENT}
    shown = [metric for metric, (a, b) in measured.items() if a.keys() & b.keys()]
    names = list(dict.fromkeys(name for metric in shown for one in measured[metric] for name in one))

    def gain(name: str, metric: str) -> float:
        a, b = (one.get(name) for one in measured[metric])
        return 0.0 if a is None or b is None else b - a

    if not shown:
        return Sheet("Clients", (), ())
    names.sort(key=lambda name: -abs(gain(name, shown[0])))
    rows = []
    for name in names[:MOST_CLIENTS]:
        row = [name]
        for metric in shown:
            a, b = (one.get(name) for one in measured[metric])
            row += [_number(a), _number(b), _gain(a, b)] if metric == shown[0] else [_gain(a, b)]
        rows.append(row)
    headings = [f"{METRIC_TITLES[metric]}, B - A" for metric in shown]
    headings[:1] = [f"{METRIC_TITLES[shown[0]]}, {side}" for side in ("A", "B", "B - A")]
    caption = _tally([gain(name, shown[0]) for name in names], METRIC_TITLES[shown[0]], len(names))
    return Sheet("Clients, test accuracy after the last round", ("client", *headings), _cells(rows), caption=caption)


def _tally(gains: Sequence[float], metric: str, count: int) -> str:
    more, less = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    cut = f"; the first {MOST_CLIENTS} of {count}" if count > MOST_CLIENTS else ""
    return f"{metric}: {more} clients gain, {less} lose, {count - more - less} stay; largest change first{cut}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gain(ours: float | None, theirs: float | None) -> str:
    return "-" if ours is None or theirs is None else f"{theirs - ours:+.2f}"


def _cells(rows: Sequence[Sequence[str]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(map(Cell, row)) for row in rows)
