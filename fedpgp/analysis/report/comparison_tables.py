"""The tables of a comparison: accuracies, paired differences, readings, costs, settings, its CSV; and of two runs."""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from rich.console import Group as Lines

from fedpgp.analysis.comparison import (
    MAIN,
    METRIC_TITLES,
    READING_TITLES,
    Comparison,
    Group,
    Run,
    measured,
    repeated_over,
)  # fmt: skip
from fedpgp.analysis.loading import client_accuracies
from fedpgp.analysis.report import measure_tables, privacy_tables, tables, tuned_tables
from fedpgp.analysis.report.tables import Table, mean_std, ranked, starred, statistic_columns, statistic_text, titled
from fedpgp.analysis.statistic import Statistic, counted, over
from fedpgp.config import differing
from fedpgp.core.text import disk_size
from fedpgp.federation.metrics import METRICS, NEW_CLIENT, SEEN, TESTED

PER_CLIENT = ("local", "held_out", "all", "base", "novel")
MAX_CLIENTS = 40
MARKS = "†‡§¶"
STANDING = ("local", "base", "novel", "hm")
CSV_HEADINGS = "scenario,group,split,metric,reading,mean,std,seeds,values,baseline,difference,low,high,marks"


def all_tables(comparison: Comparison, baseline: str) -> list[Table]:
    """All tables of a comparison that have rows."""
    found = tuned_tables.of_scenarios(comparison)
    for scenario in comparison.scenarios:
        found += [accuracies(comparison, scenario), differences(comparison, scenario, baseline)]
    for build in (*measure_tables.BUILDERS, new_clients, readings, privacy_tables.of_groups, costs):
        found += [build(groups, scenario) for scenario, groups in comparison.scenarios.items()]
    return [table for table in found if table.rows]


def accuracies(comparison: Comparison, scenario: str) -> Table:
    """Mean ± standard deviation for the groups of one scenario; the best and the second best are marked."""
    groups = comparison.scenarios[scenario]
    metrics = measured(groups)
    columns = [ranked([group.statistic(metric) for group in groups]) for metric in metrics]
    signs = _signs(comparison)
    names = [" ".join([group.label, *(signs[note] for note in group.notes)]) for group in groups]
    return Table(
        titled("Accuracy on test images in percent, mean over clients", scenario),
        ("", "seeds", *(METRIC_TITLES[metric] for metric in metrics)),
        zip(names, (counted(group.seeds) for group in groups), *columns, strict=True),
        caption=f"after the last round, mean ± standard deviation over {repeated_over(groups)} (ddof 1)",
    )


def standings(comparison: Comparison) -> Table:
    """The short table of a demo: one decimal, the best of each column starred."""
    groups = comparison.groups
    seeds = max((group.seeds for group in groups), key=len)
    columns = [ranked([group.statistic(metric) for group in groups], digits=1) for metric in STANDING]
    starred_columns = [[starred(cell.text, cell.rank == 1) for cell in column] for column in columns]
    return Table(
        "Test accuracy in percent, mean over clients; * best",
        ("method", *(METRIC_TITLES[metric] for metric in STANDING)),
        zip((group.label for group in groups), *starred_columns, strict=True),
        caption=f"mean ± standard deviation over {over(seeds)}" if len(seeds) > 1 else "one seed",
    )


def differences(comparison: Comparison, scenario: str, baseline: str) -> Table:
    """Paired difference of each group of a scenario to the baseline; no rows if the scenario lacks the baseline."""
    groups = comparison.scenarios[scenario]
    metrics = measured(groups)
    rows = []
    for group in groups:
        found = [comparison.difference(group, baseline, metric) for metric in metrics]
        if any(found):
            seeds = max((one.by_seed for one in found if one), key=len)
            rows.append((group.label, counted(seeds), *map(_difference, found)))
    return Table(
        titled(f"Difference to {baseline}", scenario),
        ("", "seeds", *(METRIC_TITLES[metric] for metric in metrics)),
        rows,
        caption="paired by common seeds, test images, percentage points; in brackets the 95% confidence interval of "
        "the mean, not corrected for multiple comparisons",
    )


def new_clients(groups: Sequence[Group], scenario: str = "") -> Table:
    """Accuracy of the clients that never train, and the participation gap; no rows if there are none."""
    metrics = [metric for metric in METRICS if any(group.statistic(metric, NEW_CLIENT) for group in groups)]
    rows = []
    for group in groups:
        found = [group.statistic(metric, NEW_CLIENT) for metric in metrics]
        if any(found):
            seen, new = group.statistic(SEEN), group.statistic("local", NEW_CLIENT)
            gap = seen.minus(new) if seen and new else None
            rows.append((group.label, *map(statistic_text, (*found, gap))))
    headings = ("", *(METRIC_TITLES[metric] for metric in metrics), "participation gap")
    caption = (
        "test images, after the last round: the global model, and (adapted) after local epochs on their images; gap: "
        "Local of the global model on the clients that train minus that on the new ones (Yuan et al., ICLR 2022)"
    )
    return Table(titled("Clients that never train, accuracy in percent", scenario), headings, rows, caption=caption)


def readings(groups: Sequence[Group], scenario: str = "") -> Table:
    """The main metric in three readings on both splits."""
    rows = []
    metric = next((one for one in MAIN if any(group.statistic(one) for group in groups)), "local")
    for group in groups:
        for split in TESTED:
            found = [group.statistic(metric, split, read) for read in READING_TITLES]
            if any(found):
                rows.append((group.label, split, *map(statistic_text, found)))
    title = titled(f"{METRIC_TITLES[metric]} in three readings of the rounds", scenario)
    headings = ("", "", *READING_TITLES.values())
    return Table(title, headings, rows, text_columns=2, caption="max on test selects on the test images")


def costs(groups: Sequence[Group], scenario: str = "") -> Table:
    """Rounds, bytes and seconds of a run of each group, mean over its runs."""
    rows = []
    for group in groups:
        runs = group.runs.values()
        sent = (fmean(run.bytes_up for run in runs), fmean(run.bytes_down for run in runs))
        seconds = fmean(run.seconds_per_round for run in runs)
        rounds = "-".join(dict.fromkeys(str(bound(run.rounds for run in runs)) for bound in (min, max)))
        rows.append((group.label, rounds, *(disk_size(size) for size in sent), f"{seconds:.2f}"))
    headings = ("", "rounds", "sent up", "sent down", "seconds per round")
    return Table(titled("Cost of a run", scenario), headings, rows, caption="mean over the runs of a group")


def remarks(comparison: Comparison) -> list[str]:
    """Notes below the tables: marks, what is missing or left out, and on which images settings were selected."""
    lines = [f"{sign} {note}" for note, sign in _signs(comparison).items()]
    lines += [f"missing: {line}" for line in comparison.missing()]
    lines += list(comparison.notes)
    for metric in comparison.selected:
        split, _, name = metric.partition("/")
        images = "validation images" if split == "val" else "the TEST images: these numbers are optimistic"
        lines.append(f"settings were selected by {name} on {images} ({metric})")
    if not comparison.selected:
        lines.append("how settings were selected is not on record: these runs were not compared as a sweep")
    return lines


def settings(comparison: Comparison) -> Table:
    """The settings that differ, with a column per group."""
    labels = [f"{group.label} ({group.scenario})" if group.scenario else group.label for group in comparison.groups]
    return differing_settings(labels, [group.settings for group in comparison.groups], comparison.differing)


def differing_settings(labels: Sequence[str], trees: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Table:
    """The values of some settings, with a column per label; `-` if a tree lacks the key."""
    rows = [(key, *(str(tree[key]) if key in tree else "-" for tree in trees)) for key in keys]
    return Table("Settings that differ", ("", *labels), rows, text_columns=len(trees) + 1)


def as_csv(comparison: Comparison, baseline: str) -> str:
    """One line per group, split, metric, measure or domain, and reading (max: the largest), for other programs."""
    rows = []
    for group in comparison.groups:
        for split in TESTED:
            for metric, reading in product(comparison.names(split), READING_TITLES):
                numbers = statistic_columns(group.statistic(metric, split, reading))
                gained = comparison.difference(group, baseline, metric, reading) if split == "test" else None
                low, high = (gained.interval if gained else None) or (None, None)
                difference = (baseline, gained.mean if gained else None, low, high)
                marks = group.notes_on(f"{split}/{metric}")
                rows.append((group.scenario, group.label, split, metric, reading, *numbers, *difference, marks))
    return tables.as_csv(CSV_HEADINGS, rows)


def side_by_side(first: Run, second: Run, notes: Sequence[str] = ()) -> Lines:
    """All tables of two runs; A is the first run, B the second, differences are B - A."""
    trees = [
        {"seed": run.fold.seed, "protocol.held_out": run.fold.held_out, **run.settings, "fedpgp": run.version}
        for run in (first, second)
    ]
    set_apart = differing_settings(("A", "B"), trees, differing(trees))
    spent = privacy_tables.of_pair(first, second)
    found = [set_apart, _pair_metrics(first, second), spent, pair_clients(first, second)]
    names = [f"A: {first.path.name} ({first.state})", f"B: {second.path.name} ({second.state})"]
    return tables.in_terminal([table for table in found if table.rows], [*names, *(f"mark: {note}" for note in notes)])


def _pair_metrics(first: Run, second: Run) -> Table:
    """Every metric that one of them measured: after the last round, and the difference in the other readings."""
    rows = []
    for split in TESTED:
        for metric in METRICS:
            a, b = (run.metrics.get(f"{split}/{metric}", {}) for run in (first, second))
            if a or b:
                gains = [_gain(a.get(read), b.get(read)) for read in READING_TITLES]
                rows.append((split, METRIC_TITLES[metric], mean_std(a.get("last")), mean_std(b.get("last")), *gains))
    others = [f"{title}, B - A" for title in list(READING_TITLES.values())[1:]]
    return Table("Accuracy in percent", ("split", "metric", "A", "B", "B - A", *others), rows, text_columns=2)


def pair_clients(first: Run, second: Run) -> Table:
    """Test accuracy of each client, the largest gain or loss first."""
    found = {metric: [client_accuracies(run.path, metric) for run in (first, second)] for metric in PER_CLIENT}
    shown = [metric for metric, (a, b) in found.items() if a.keys() & b.keys()]
    if not shown:
        return Table("Clients", (), ())
    main = shown[0]
    names = dict.fromkeys(name for metric in shown for one in found[metric] for name in one)
    pairs = {name: {metric: [one.get(name) for one in found[metric]] for metric in shown} for name in names}
    gains = {name: _change(*own[main]) or 0.0 for name, own in pairs.items()}
    ordered = sorted(names, key=lambda name: -abs(gains[name]))
    rows = [
        (name, *map(mean_std, pairs[name][main]), *(_gain(*pairs[name][metric]) for metric in shown))
        for name in ordered
    ]
    headings = [f"{METRIC_TITLES[main]}, {side}" for side in ("A", "B", "B - A")]
    headings += [f"{METRIC_TITLES[metric]}, B - A" for metric in shown[1:]]
    title = "Clients, test accuracy after the last round"
    more, less = sum(gain > 0 for gain in gains.values()), sum(gain < 0 for gain in gains.values())
    stay = len(gains) - more - less
    caption = f"{METRIC_TITLES[main]}: {more} clients gain, {less} lose, {stay} stay; largest change first"
    return Table(title, ("client", *headings), rows, caption=caption, max_rows=MAX_CLIENTS)


def _difference(found: Statistic | None) -> str:
    """`+1.20`, and below it the interval `[-0.5, +4.5]`; or `-`."""
    if found is None:
        return "-"
    interval = found.interval
    return f"{found.mean:+.2f}" + ("" if interval is None else f"\n[{interval[0]:+.1f}, {interval[1]:+.1f}]")


def _signs(comparison: Comparison) -> dict[str, str]:
    """A sign for each note on a group."""
    notes = dict.fromkeys(note for group in comparison.groups for note in group.notes)
    return {note: MARKS[number % len(MARKS)] * (1 + number // len(MARKS)) for number, note in enumerate(notes)}


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _gain(before: float | None, after: float | None) -> str:
    change = _change(before, after)
    return "-" if change is None else f"{change:+.2f}"
