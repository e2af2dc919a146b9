"""Two runs compared: settings that differ, metrics, and what each client gains or loses."""

from collections.abc import Sequence

from rich.console import Group

from fedpgp.analysis.comparison import READINGS, Run
from fedpgp.analysis.loading import client_accuracies
from fedpgp.analysis.report.comparison_tables import differing_settings
from fedpgp.analysis.report.labels import METRIC_TITLES, READING_TITLES
from fedpgp.analysis.report.tables import Table, in_terminal, mean_std
from fedpgp.config import differing
from fedpgp.federation.metrics import METRICS

PER_CLIENT = ("local", "held_out", "all", "base", "novel")
MAX_CLIENTS = 40


def side_by_side(first: Run, second: Run, notes: Sequence[str] = ()) -> Group:
    """All tables; A is the first run, B the second, differences are B - A."""
    tables = [settings(first, second), metrics(first, second), clients(first, second)]
    names = [f"A: {first.path.name} ({first.state})", f"B: {second.path.name} ({second.state})"]
    return in_terminal([table for table in tables if table.rows], [*names, *(f"mark: {note}" for note in notes)])


def settings(first: Run, second: Run) -> Table:
    """The settings that differ, among them seed, held-out domain and version."""
    trees = [
        {"seed": run.fold.seed, "protocol.held_out": run.fold.held_out, **run.settings, "fedpgp": run.version}
        for run in (first, second)
    ]
    return differing_settings(("A", "B"), trees, differing(trees))


def metrics(first: Run, second: Run) -> Table:
    """Every metric that one of them measured: after the last round, and the difference in the other readings."""
    rows = []
    for split in ("val", "test"):
        for metric in METRICS:
            a, b = (run.metrics.get(f"{split}/{metric}", {}) for run in (first, second))
            if a or b:
                gains = [_gain(a.get(read), b.get(read)) for read in READINGS]
                rows.append((split, METRIC_TITLES[metric], mean_std(a.get("last")), mean_std(b.get("last")), *gains))
    others = [f"{READING_TITLES[read]}, B - A" for read in READINGS[1:]]
    return Table.of("Accuracy in percent", ("split", "metric", "A", "B", "B - A", *others), rows, text_columns=2)


def clients(first: Run, second: Run) -> Table:
    """Test accuracy of each client, the largest gain or loss first."""
    measured = {metric: [client_accuracies(run.path, metric) for run in (first, second)] for metric in PER_CLIENT}
    shown = [metric for metric, (a, b) in measured.items() if a.keys() & b.keys()]
    if not shown:
        return Table("Clients", (), ())
    main = shown[0]
    names = dict.fromkeys(name for metric in shown for one in measured[metric] for name in one)
    pairs = {name: {metric: [one.get(name) for one in measured[metric]] for metric in shown} for name in names}
    gains = {name: _change(*own[main]) or 0.0 for name, own in pairs.items()}
    ordered = sorted(names, key=lambda name: -abs(gains[name]))
    rows = [
        (name, *map(mean_std, pairs[name][main]), *(_gain(*pairs[name][metric]) for metric in shown))
        for name in ordered
    ]
    headings = [f"{METRIC_TITLES[main]}, {side}" for side in ("A", "B", "B - A")]
    headings += [f"{METRIC_TITLES[metric]}, B - A" for metric in shown[1:]]
    title = "Clients, test accuracy after the last round"
    caption = _tally(list(gains.values()), METRIC_TITLES[main])
    return Table.of(title, ("client", *headings), rows, caption=caption, max_rows=MAX_CLIENTS)


def _tally(gains: Sequence[float], metric: str) -> str:
    more, less = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return f"{metric}: {more} clients gain, {less} lose, {len(gains) - more - less} stay; largest change first"


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _gain(before: float | None, after: float | None) -> str:
    change = _change(before, after)
    return "-" if change is None else f"{change:+.2f}"
